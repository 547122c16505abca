"""What the tests that ask transformers itself share: it is imported without its warnings."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

WHY = "the reverse direction asks transformers (and torch) themselves"


def transformers():
    """(transformers, torch), or the test is skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch", reason=WHY)
        found = pytest.importorskip("transformers", reason=WHY)
    found.logging.set_verbosity_error()
    found.logging.disable_progress_bar()
    return found, torch


def opened(folder, kind):
    """A folder as transformers opens it, which must miss and invent nothing."""
    library, _ = transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, said = getattr(library, kind).from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
    for name in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not said[name], (name, said[name])
    if hasattr(model, "set_experts_implementation") and model.config.model_type == "mixtral":
        model.set_experts_implementation("eager")
    return model.eval()


def logits(model, **inputs):
    """Theirs for numpy inputs, float32."""
    _, torch = transformers()
    given = {k: torch.from_numpy(np.asarray(x).astype(int)) for k, x in inputs.items()}
    if "pixel_values" in inputs:
        given["pixel_values"] = torch.from_numpy(np.array(inputs["pixel_values"]))
    more = {} if model.config.model_type != "t5" else {"use_cache": False}
    with torch.no_grad():
        return model(**given, **more).logits.float().numpy()
