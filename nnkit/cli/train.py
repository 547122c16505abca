"""`nnkit train` and `nnkit demo`: an experiment is a file with `Config` and `main`."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated

from nnkit.cli.settings import switches

__all__ = ["demo", "launch", "load", "train"]


def folders() -> list[Path]:
    """Where experiments are looked for: here, in the package, beside it (a source checkout).

    >>> any((folder / "digits.py").exists() for folder in folders())
    True
    """
    package = Path(__file__).resolve().parents[1]
    places = [Path.cwd() / "experiments", package / "experiments", package.parent / "experiments"]
    return [place for place in places if place.is_dir()]


def load(name: str) -> ModuleType:
    """The module of an experiment, from its name or the path of its file.

    Args:
      name: such as "digits" or "mine/idea.py".

    Returns:
      The module; it has `Config` (a frozen dataclass) and `main(config, folder)`.

    Raises:
      FileNotFoundError: if there is none; names the nearest, or the missing file.
      AttributeError: if the file lacks Config or main.

    >>> load("digits").Config().seeds
    5
    """
    nearest_last = reversed(folders())  # an experiment of one's own hides one of the package
    known = {p.stem: p for folder in nearest_last for p in sorted(folder.glob("[a-z]*.py"))}
    path = Path(name) if name.endswith(".py") else known.get(name)
    if path is not None and not path.is_file():
        names = ", ".join(sorted(known))
        raise FileNotFoundError(
            f"there is no file {name}, expected a file.py; or give one of {names}"
        )
    if path is None:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"perhaps you meant {near[0]!r}" if near else f"there are {', '.join(sorted(known))}"
        raise FileNotFoundError(f"there is no experiment {name!r}; {hint}, or give a file.py")
    title = f"experiments.{path.stem}"
    spec = importlib.util.spec_from_file_location(title, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[title] = module  # dataclass annotations are looked up there
    spec.loader.exec_module(module)
    for need in ("Config", "main"):
        if not hasattr(module, need):
            raise AttributeError(f"{path} has no {need}; an experiment has Config and main(config)")
    return module


def train(words: list[str]) -> int:
    """nnkit train EXPERIMENT [--field value] [--folder RUN] [--fresh] [--hosts] [--platform KIND].

    Args:
      words: the words after the verb.

    Returns:
      The exit code.

    >>> train(["digist"])
    there is no experiment 'digist'; perhaps you meant 'digits', or give a file.py
    2
    """
    if not words or words[0] in ("-h", "--help"):
        known = sorted({p.stem for folder in folders() for p in folder.glob("[a-z]*.py")})
        print("usage: nnkit train EXPERIMENT [--field value] [--folder RUN] [--fresh] [--hosts]")
        print("                               [--platform cpu|gpu|tpu]")
        print(f"experiments: {', '.join(known)}, or a file.py")
        print("nnkit train EXPERIMENT --help lists its fields; --hosts joins the other hosts of")
        print("a cluster, where the same command runs (docs/hosts); without a cluster give")
        print("--hosts host:port,processes,number; --platform must be there")
        return 0 if words else 2
    try:
        module = load(words[0])
    except FileNotFoundError as error:
        print(error)
        return 2
    return conduct(module, Path(words[0]).stem, words[1:])


def demo(words: list[str]) -> int:
    """nnkit demo: the experiment `digits` with its defaults (fields may be given).

    Args:
      words: the words after the verb.

    Returns:
      The exit code.

    >>> demo(["--seeds", "-1"])  # and, to stderr: seeds is -1, expected a finite number > 0
    2
    """
    shipped = folders()[-1] / "digits.py"  # not a file of that name in the current folder
    return conduct(load(str(shipped)), "digits", words)


def launch(file: str) -> None:
    """The last line of an experiment: `python -m experiments.NAME` as `nnkit train NAME`.

    Args:
      file: `__file__` of the experiment.

    >>> launch("digits.py")  # doctest: +SKIP
    """
    raise SystemExit(conduct(load(file), Path(file).stem, sys.argv[1:]))


def joined(words: list[str]) -> list[str]:
    """Joins the other hosts if the words say --hosts [ADDRESS,PROCESSES,NUMBER]; the other words.

    >>> joined(["--steps", "3"])
    ['--steps', '3']
    >>> joined(["--hosts", "here,2"])
    Traceback (most recent call last):
        ...
    ValueError: --hosts here,2: expected nothing more, or host:port,processes,number
    """
    if "--hosts" not in words:
        return words
    i = words.index("--hosts")
    numbers = words[i + 1].split(",") if i + 1 < len(words) and words[i + 1][0] != "-" else []
    if numbers and not (len(numbers) == 3 and all(n.isdigit() for n in numbers[1:])):
        said = ",".join(numbers)
        raise ValueError(f"--hosts {said}: expected nothing more, or host:port,processes,number")
    from nnkit.parallel import hosts  # before anything else of jax

    if not numbers:
        hosts.start()
        return words[:i] + words[i + 1 :]
    hosts.start(numbers[0], num_processes=int(numbers[1]), process_id=int(numbers[2]))
    return words[:i] + words[i + 2 :]


def conduct(module: ModuleType, name: str, words: list[str]) -> int:
    """Read the configuration from words, choose the run folder, train.

    >>> conduct(load("digits"), "digits", ["--steps", "0"])  # and, to stderr, what is wrong
    2
    """
    try:
        words = joined(required(words))
    except (ValueError, RuntimeError, TimeoutError) as error:
        print(error)
        return 2
    try:
        config, folder, fresh = _parsed(module, name, words)
    except SystemExit as ended:  # --help, or words that are wrong: said by tyro
        return int(ended.code or 0)
    from nnkit.parallel import hosts

    place = Path(folder) if folder else default_folder(name, config)
    if fresh:
        place = Path(hosts.shared(str(unused(place))))
    from nnkit.cli.restored import checkpoints
    from nnkit.loop.interrupts import ending
    from nnkit.loop.records import claimable

    try:
        claimable(place, config)
    except (ValueError, NotADirectoryError) as error:
        print(error)
        return 2
    status = place / "STATUS"
    finished = status.exists() and status.read_text().strip() == "done"
    if hosts.first():
        print(f"run folder {place}", flush=True)
    try:
        cache_programs()
        cores_as_devices(config)
        with ending():
            module.main(config, place)
    except FloatingPointError as error:
        print(error)
        return 1
    except KeyboardInterrupt:
        same = f"--folder {place} instead of --fresh" if fresh else "the same command"
        saved = bool(checkpoints(place / "checkpoints"))
        then = "resumes from the last checkpoint" if saved else "starts anew: nothing is saved yet"
        print(f"\ninterrupted; {same} {then}", flush=True)
        return 130
    if finished:
        print("already finished; --fresh trains anew")
    return 0


def required(words: list[str]) -> list[str]:
    """The words without `--platform KIND`, once that is known to be here.

    >>> required(["--steps", "3", "--platform", "cpu"])
    ['--steps', '3']
    """
    if "--platform" not in words:
        return words
    import jax

    from nnkit.core import platforms

    at = words.index("--platform")
    kind = "".join(words[at + 1 : at + 2])
    if kind == "cpu":
        jax.config.update("jax_platforms", "cpu")
    platforms.require(kind)
    return words[:at] + words[at + 2 :]


def _parsed(module: ModuleType, name: str, words: list[str]):
    """(config, folder, fresh) from words."""
    import tyro

    if wrong := switches(module.Config, words):
        print(wrong, file=sys.stderr)
        raise SystemExit(2)

    def parsed(config, folder="", fresh=False):
        return config, folder, fresh

    where = tyro.conf.arg(
        metavar="RUN",
        help="the run folder",
        help_behavior_hint=f"(default: {name}-HASH of the configuration, in NNKIT_RUNS or runs)",
    )
    anew = tyro.conf.arg(
        help="train anew in a folder of its own, instead of resuming", help_behavior_hint=""
    )
    single = getattr(tyro.conf, "FlagCreatePairsOff", None)  # tyro 0.9.0 has --no-fresh as well
    flag = Annotated[bool, anew]
    parsed.__annotations__ = {
        "config": module.Config,
        "folder": Annotated[str, where],
        "fresh": single[flag] if single else flag,
    }
    return tyro.cli(
        parsed,
        args=words,
        prog=f"nnkit train {name}",
        description=(module.__doc__ or name).strip().split("\n\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )


def default_folder(name: str, config) -> Path:
    """runs/NAME-HASH: the same configuration finds its run again, another one its own folder.

    >>> default_folder("digits", load("digits").Config()).name[:7]
    'digits-'
    """
    from nnkit.loop.records import canonical

    return Path(os.environ.get("NNKIT_RUNS", "runs")) / f"{name}-{canonical(config)[1][:8]}"


def unused(folder: Path) -> Path:
    """The folder, or the first of folder-2, folder-3, ... that does not exist.

    >>> unused(Path("no-such-folder")).name
    'no-such-folder'
    """
    place, n = folder, 1
    while place.exists():
        n += 1
        place = folder.with_name(f"{folder.name}-{n}")
    return place


def cores_as_devices(config) -> None:
    """On CPU, as many devices as the configuration wants, if it has the field `devices`.

    >>> cores_as_devices(load("digits").Config())
    """
    import jax

    chosen = (
        getattr(jax.config, "jax_num_cpu_devices", -1) > 0 or "JAX_NUM_CPU_DEVICES" in os.environ
    )
    if getattr(config, "devices", 1) > 1 and not chosen:
        with contextlib.suppress(RuntimeError):  # jax has started already: it stays as it is
            jax.config.update("jax_num_cpu_devices", config.devices)


def cache_programs() -> None:
    """Keep compiled programs between processes; NNKIT_CACHE=folder, NNKIT_CACHE=0 is off.

    >>> cache_programs()
    """
    import jax

    where = os.environ.get("NNKIT_CACHE", str(Path.home() / ".cache" / "nnkit"))
    if where != "0":
        jax.config.update("jax_compilation_cache_dir", where)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
