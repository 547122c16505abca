"""The model card: README.md with a header in YAML that the hub reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["readme"]

HEADER = ("license", "language", "datasets", "tags", "base_model", "metrics")
TASKS = {
    "bert": "fill-mask",
    "vit": "image-classification",
    "t5": "text2text-generation",
}


def readme(card: Mapping | str | None, name: str, keys: Mapping, count: int) -> str:
    """The text of a model card.

    Args:
      card: {heading: text, {setting: value} or rows of a table}; the names license, language,
        datasets, tags, base_model and metrics go into the header; or the whole text; or None.
      name: of the model.
      keys: of its config.json.
      count: number of parameters.

    Returns:
      Markdown.

    Raises:
      TypeError: if the card is of another kind.

    >>> text = readme({"results": [{"split": "test", "loss": 1.5}]}, "tiny", {}, 12)
    >>> text.splitlines()[-3:]
    ['| split | loss |', '| --- | --- |', '| test | 1.5 |']

    Mitchell et al., arXiv:1810.03993, section 4.
    """
    if isinstance(card, str):
        return card if card.endswith("\n") else card + "\n"
    if card is not None and not isinstance(card, Mapping):
        raise TypeError(
            f"card is {type(card).__name__}, expected {{heading: text or table}}, or the whole text"
        )
    card = dict(card or {})
    family = keys.get("model_type", "")
    kind = (keys.get("architectures") or ["model"])[0]
    task = "text-classification" if "Classification" in kind else "fill-mask"
    head: dict[str, Any] = {"library_name": "transformers"}
    head["pipeline_tag"] = TASKS.get(family, "text-generation") if family != "bert" else task
    head |= {key: card.pop(key) for key in HEADER if key in card}
    head["tags"] = list(dict.fromkeys([*head.get("tags", []), "nnkit", "jax"]))
    lines = ["---", *(f"{key}: {json.dumps(value)}" for key, value in head.items()), "---", ""]
    lines += [f"# {name}", ""]
    lines += [f"A {kind} of {count:,} parameters, written by nnkit.", ""]
    if "transformers" not in card and keys:
        auto = _auto(kind)
        lines += ["```python", f"from transformers import {auto}", ""]
        lines += [f'model = {auto}.from_pretrained("{name}")', "```", ""]
    for heading, value in card.items():
        lines += [f"## {heading}", "", *_section(value), ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def _auto(kind: str) -> str:
    """The class of transformers that opens any model of that kind."""
    for part, auto in {
        "ForSequenceClassification": "AutoModelForSequenceClassification",
        "ForImageClassification": "AutoModelForImageClassification",
        "ForMaskedLM": "AutoModelForMaskedLM",
        "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    }.items():
        if kind.endswith(part):
            return auto
    return "AutoModelForCausalLM"


def _section(value) -> list[str]:
    """A text as it is, settings as a list, rows as a table."""
    if isinstance(value, Mapping):
        return [f"- {key}: {_short(x)}" for key, x in value.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        rows = [{k: x for k, x in row.items() if not isinstance(x, list)} for row in value]
        columns = list(dict.fromkeys(key for row in rows for key in row))
        cells = [columns, ["---"] * len(columns)]
        cells += [[_short(row.get(key, "")) for key in columns] for row in rows]
        return ["| " + " | ".join(row) + " |" for row in cells]
    return [str(value)]


def _short(x) -> str:
    text = f"{x:.4g}" if isinstance(x, float) else str(x)
    return text.replace("|", "\\|").replace("\n", " ")
