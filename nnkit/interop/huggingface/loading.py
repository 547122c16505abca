"""A checkpoint of Hugging Face as a model of ours with its parameters."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nnkit.core.documents import document
from nnkit.core.trees import paths
from nnkit.interop import digests, files
from nnkit.interop.huggingface import names
from nnkit.interop.huggingface.families import expected, fresh, model_of

__all__ = ["Pretrained", "Report", "load"]

FILES = ["model.safetensors", "model-*.safetensors", "*.json"]  # not the same weights twice


class Report(NamedTuple):
    """What was done with every tensor of a checkpoint.

    Attributes:
      folder: where it was.
      loaded: names in the file whose numbers are used.
      missing: paths of ours that the file has not; they are freshly drawn.
      unused: names in the file that the caller allowed to be left out.
      ignored: names in the file that do not matter, with the reason.

    >>> print(Report("out", ("a", "b"), (), ("c",), {}))
    out: 2 tensors loaded; missing: none; unused: 1 (c); ignored: none

    Wolf et al., arXiv:1910.03771 (transformers).
    """

    folder: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unused: tuple[str, ...]
    ignored: dict[str, str]

    def __str__(self) -> str:
        reasons = Counter(self.ignored.values())
        ignored = "; ".join(f"{n} ({why})" for why, n in reasons.items()) or "none"
        parts = [f"{self.folder}: {len(self.loaded)} tensors loaded"]
        for name in ("missing", "unused"):
            found = getattr(self, name)
            more = f", ... {len(found) - 3} more" if len(found) > 3 else ""
            listed = f"{len(found)} ({', '.join(found[:3])}{more})" if found else "none"
            fresh = ", freshly drawn" if found and name == "missing" else ""
            parts.append(f"{name}: {listed}{fresh}")
        return "; ".join([*parts, f"ignored: {ignored}"])


class Pretrained(NamedTuple):
    """A checkpoint, ready to be used: model.apply({"params": params}, tokens).

    Attributes:
      model: a Linen module.
      params: its parameters, arrays [...] in the dtype of the file.
      tokenizer: of `nnkit.data`, or None if the folder has none.
      config: config.json as it is.
      report: a `Report`.

    >>> Pretrained._fields
    ('model', 'params', 'tokenizer', 'config', 'report')

    Wolf et al., arXiv:1910.03771 (transformers).
    """

    model: Any
    params: Any
    tokenizer: Any
    config: dict
    report: Report


def load(
    path_or_id,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir=None,
    local_files_only: bool = False,
    dtype=None,
    fields: dict | None = None,
    allow_missing: Iterable[str] = (),
    allow_unused: Iterable[str] = (),
    ignore_keys: Iterable[str] = (),
    key=None,
    tokenizer: bool = True,
    quiet: bool = False,
) -> Pretrained:
    """A checkpoint of GPT-2, Llama, Mistral, Qwen 2 / 3, Gemma 2, Mixtral, BERT, ViT or T5.

    Prints one line: how many tensors were loaded, and which are missing, unused or ignored. The
    parameters equal those of the file bit by bit; a fused tensor is cut, a matrix turned, nothing
    is computed. Tensors are read one after the other, so that memory holds the model once.

    Args:
      path_or_id: a folder with config.json and model.safetensors (or its shards), or the id of a
        repository of the hub, such as "openai-community/gpt2" (extra `hub`).
      revision: branch, tag or commit of the hub; None: main.
      token: of the hub; None: the one that is stored.
      cache_dir: where files of the hub go.
      local_files_only: take from the cache, never ask the hub.
      dtype: of all parameters, such as "float32"; None keeps that of each tensor.
      fields: fields of our model that come before config.json: {"dropout": 0.0, "classes": 3}.
      allow_missing: patterns of our paths ("head/*") that the file may lack, or have in another
        size (a head for other classes); they are drawn fresh.
      allow_unused: patterns of names in the file ("cls.*") that are left out.
      ignore_keys: keys of config.json that do not matter, though they are not known here.
      key: a random key, for what is drawn fresh.
      tokenizer: read tokenizer.json too, if there is one?
      quiet: print nothing.

    Returns:
      A `Pretrained`.

    Raises:
      FileNotFoundError: if the folder or a file is missing, or weights are a pickle only.
      ImportError: if an id is given without the extra `hub`.
      ConnectionError: if the hub does not answer and its files are not in the cache.
      ValueError: if config.json asks for what the model cannot do; if a tensor is missing, unused
        or of another shape: the first one of each and how many; if a file is damaged, by its form
        or by the digest in it; if the tokenizer has more tokens than the model.

    >>> import tempfile
    >>> from nnkit import models
    >>> from nnkit.interop.huggingface import save
    >>> model = models.GPT(vocabulary=11, length=8, width=8, depth=1, heads=2)
    >>> params = jax.jit(model.init)(jax.random.key(0), jnp.array([[1]]))["params"]
    >>> folder = tempfile.mkdtemp() + "/tiny"
    >>> _ = save(folder, model, params)
    >>> found = load(folder)  # doctest: +ELLIPSIS
    /.../tiny: 16 tensors loaded; missing: none; unused: none; ignored: none
    >>> bool((found.params["embed"]["embedding"] == params["embed"]["embedding"]).all())
    True

    Wolf et al., arXiv:1910.03771 (transformers), whose files these are.
    """
    folder = _folder(path_or_id, revision, token, cache_dir, local_files_only)
    config = _config(folder)
    family, model = model_of(config, fields, ignore_keys)
    there = files.tensors(folder)
    depth = getattr(model, "depth", 0)
    if depth > len(there) and not allow_missing:  # each layer has a tensor at least
        raise ValueError(
            f"{folder}: config.json says {depth:,} layers, but there are {len(there):,} tensors, "
            "expected more: config.json is not that of these weights; copy both again"
        )
    known, ignored = _known(folder, family, model, there, config)
    plan = _plan(folder, family, model, known, tuple(allow_missing), tuple(allow_unused))
    plan = plan._replace(ignored=ignored)
    words = _tokenizer(folder, model) if tokenizer else None
    for file in sorted({tensor.file for tensor in there.values()}):
        if problem := digests.damage(file):
            raise ValueError(problem)
    params = _params(plan, None if dtype is None else jnp.dtype(dtype))
    if plan.fresh:
        params |= _drawn(model, plan, params, dtype, key)
    report = Report(str(path_or_id), plan.loaded, plan.fresh, plan.unused, plan.ignored)
    if not quiet:
        print(report)
    return Pretrained(model, _nested(params), words, config, report)


def _folder(path_or_id, revision, token, cache_dir, local_files_only) -> Path:
    """The local folder, or that into which the hub's files are brought."""
    text = os.fspath(path_or_id)
    if text and Path(text).is_dir():
        return Path(text)
    looks_local = Path(text).is_absolute() or text.startswith((".", "~")) or text.count("/") > 1
    if looks_local or not text or Path(text).exists():
        raise FileNotFoundError(
            f"{text!r} is no folder; expected one with config.json and model.safetensors, or the "
            'id of a repository such as "openai-community/gpt2"'
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{text!r} is no local folder, and to ask the hub for it needs huggingface_hub: "
            "pip install 'nnkit-jax[hub]'"
        ) from error
    try:
        found = huggingface_hub.snapshot_download(
            text,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_patterns=FILES,
            ignore_patterns=["*/*"],  # other formats are in folders of their own
        )
    except Exception as error:
        where = "the cache" if local_files_only else "the hub or in the cache"
        kind = ConnectionError if not _said_no(error) else FileNotFoundError
        raise kind(
            f"{text!r} is no local folder, and was not found in {where} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]:.200}); check the name, "
            "revision and token, or download it where there is a network and give the folder"
        ) from error
    return Path(found)


def _said_no(error: Exception) -> bool:
    """Did the hub answer that there is no such thing, or that it may not be seen?"""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"RepositoryNotFoundError", "RevisionNotFoundError", "HFValidationError"})


def _config(folder: Path) -> dict:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json, which says what the model is")
    found = document(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected an object of keys")
    return found


class _Plan(NamedTuple):
    """What is read from where."""

    steps: list[tuple[names.Rule, tuple[files.Tensor, ...]]]
    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    ignored: dict[str, str]
    want: dict[str, jax.ShapeDtypeStruct]


def _plan(folder, family, model, known, allow_missing, allow_unused) -> _Plan:
    """Every tensor of the file against the table of the family; all differences at once."""
    want = expected(model)
    together = any(name.endswith(".experts.gate_up_proj") for name in known)
    steps, lost, fresh, resized, shapes, used = [], [], [], [], [], set()
    for rule in names.rules(family, model, together=together):
        absent = [name for name in rule.theirs if name not in known]
        outs = jax.eval_shape(rule.save, *(want[path] for path in rule.ours))
        fits = all(n in absent or known[n].shape == o.shape for n, o in zip(rule.theirs, outs))
        if (absent or not fits) and all(_matches(path, allow_missing) for path in rule.ours):
            fresh += rule.ours
            resized += [name for name in rule.theirs if name not in absent]
            continue
        ours = ", ".join(rule.ours)
        lost += [(name, out, ours) for name, out in zip(rule.theirs, outs) if name in absent]
        if absent:
            used |= set(rule.theirs)
            continue
        found = tuple(known[name] for name in rule.theirs)
        shapes += [(t, out.shape, ours) for t, out in zip(found, outs) if t.shape != out.shape]
        kinds = {tensor.dtype for tensor in found}
        if len(kinds) > 1:
            raise ValueError(
                f"{folder}: {found[0].name!r} and those that go with it have the dtypes "
                f"{sorted(map(str, kinds))}, expected one"
            )
        steps.append((rule, found))
        used |= set(rule.theirs)
    extra = [known[name] for name in known if name not in used]
    replaced = {known[name].name for name in resized}
    unused = tuple(t.name for t in extra if _matches(t.name, allow_unused) or t.name in replaced)
    extra = [t for t in extra if t.name not in unused]
    if lost or extra or shapes:
        raise ValueError(_differences(folder, family, model, lost, extra, shapes))
    _allowed(allow_missing, fresh, want, "allow_missing", "paths of the model")
    loaded = tuple(tensor.name for _, found in steps for tensor in found)
    return _Plan(steps, loaded, tuple(fresh), unused, {}, want)


def _allowed(patterns, found, every, name, what) -> None:
    """A pattern that can match nothing is a mistake in writing."""
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in every):
            raise ValueError(
                f"{name} has {pattern!r}, which matches none of the {what}; they read like "
                f"{next(iter(every))!r}"
            )


def _matches(name: str, patterns) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _known(folder, family, model, there, config) -> tuple[dict[str, files.Tensor], dict[str, str]]:
    """({canonical name: tensor}, {name in the file: why it is left out})."""
    known: dict[str, files.Tensor] = {}
    ignored: dict[str, str] = {}
    for name, tensor in there.items():
        plain = names.canonical(family, name)
        why = names.ignorable(family, model, plain)
        if why:
            ignored[name] = why
        elif plain in known:
            raise ValueError(
                f"{folder} has {known[plain].name!r} and {name!r}, two names of one tensor; "
                "expected one of them"
            )
        else:
            known[plain] = tensor
    for copy, original in names.copies(family, model).items():
        if copy not in known:
            continue
        tensor = known.pop(copy)
        if original not in known:
            known[original] = tensor
            continue
        first = known[original]
        same = (tensor.shape, tensor.dtype) == (first.shape, first.dtype)
        if not same or files.read(tensor).tobytes() != files.read(first).tobytes():
            raise ValueError(
                f"{folder}: {tensor.name!r} differs from {first.name!r}, expected a copy, because "
                "config.json says that they are tied; if they are not, set "
                '"tie_word_embeddings": false there'
            )
        ignored[tensor.name] = f"a copy of {first.name}"
    unscaled = family == "t5" and not model.tied and config.get("tie_word_embeddings", True)
    if unscaled and "shared.weight" in known:  # transformers 5 ties the head of a new T5 v1.1
        known.setdefault("lm_head.weight", known["shared.weight"])
    return known, ignored


def _differences(folder, family, model, lost, extra, shapes) -> str:
    """Missing, unused and misshapen tensors: the first of each and how many."""
    size = lambda shape: "[" + " ".join(map(str, shape)) + "]"
    parts = []
    if lost:
        name, out, ours = lost[0]
        parts.append(f"{len(lost)} missing, first {name!r} {size(out.shape)} (here {ours})")
    if extra:
        parts.append(f"{len(extra)} unknown, first {extra[0].name!r} {size(extra[0].shape)}")
    if shapes:
        tensor, shape, ours = shapes[0]
        parts.append(
            f"{len(shapes)} of another size, first {tensor.name!r} {size(tensor.shape)}, expected "
            f"{size(shape)} (here {ours})"
        )
    return (
        f"{folder} does not fit the {type(model).__name__} that its config.json (model_type "
        f"{family}) describes: {'; '.join(parts)}. Is config.json that of these weights? What may "
        "be drawn fresh, by our path, or left out, by their name, has to be said: "
        "allow_missing=(...), allow_unused=(...)"
    )


def _params(plan: _Plan, dtype) -> dict[str, jax.Array]:
    """The parameters by path, one rule after the other."""
    found = {}
    for rule, tensors in plan.steps:
        arrays = rule.load(*(files.read(tensor) for tensor in tensors))
        for path, array in zip(rule.ours, arrays):
            found[path] = _on_device(array, dtype, tensors[0])
    return found


def _on_device(array: np.ndarray, dtype, tensor: files.Tensor) -> jax.Array:
    """A jax array [...] of its own memory, in the dtype asked for, or its own."""
    kind = array.dtype if dtype is None else dtype
    if jax.dtypes.canonicalize_dtype(kind) != kind:
        raise ValueError(
            f"{tensor.file}: {tensor.name!r} is {kind}, which JAX would cut to "
            f'{jax.dtypes.canonicalize_dtype(kind)}; say load(..., dtype="float32"), or switch '
            "jax_enable_x64 on"
        )
    return jnp.array(array.astype(kind, copy=False), copy=True)


def _drawn(model, plan: _Plan, params, dtype, key) -> dict[str, jax.Array]:
    """What the file has not, from a key."""
    if key is None:
        raise ValueError(
            f"{plan.fresh[0]} and {len(plan.fresh) - 1} more are missing and to be drawn fresh, "
            "which needs a random key: load(..., key=jax.random.key(0))"
        )
    common = Counter(x.dtype for x in params.values()).most_common(1)
    kind = jnp.dtype(dtype) if dtype is not None else common[0][0] if common else jnp.float32

    @jax.jit
    def draw(key):
        every = dict(paths(fresh(model, key)))
        return {path: every[path].astype(kind) for path in plan.fresh}

    return draw(key)


def _tokenizer(folder: Path, model):
    """The tokenizer of the folder, which must fit the model; None if it has none."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from nnkit import data

    found = data.tokenizer(folder)
    size = getattr(model, "vocabulary", None)
    if size is not None and len(found) > size:
        raise ValueError(
            f"{folder}: the tokenizer has {len(found)} tokens, but the model's vocabulary has "
            f"{size}: it is not the tokenizer of these weights; load(..., tokenizer=False) leaves "
            "it out"
        )
    return found


def _nested(flat: dict) -> dict:
    """A tree of dicts from {"a/b": leaf}."""
    tree: dict = {}
    for path, leaf in flat.items():
        *way, last = path.split("/")
        at = tree
        for name in way:
            at = at.setdefault(name, {})
        at[last] = leaf
    return tree
