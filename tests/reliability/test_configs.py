"""Random edits of valid configurations train, or say what is wrong."""

import dataclasses

import pytest

from nnkit.cli import settings
from nnkit.cli.main import main
from nnkit.core.checks import typed
from reliability import configs


def test_each_edit_trains_or_explains():
    found = configs.edits(count=60, seed=0)
    assert not found["failures"], found["failures"]
    assert found["count"] == 60
    assert found["trained"] >= 5
    assert found["explained"] >= 30


def test_an_error_without_words_is_a_failure(monkeypatch):
    def broken(name, fields, door):
        raise RuntimeError("bad")

    monkeypatch.setattr(configs, "_made", broken)
    assert len(configs.edits(count=3, seed=0)["failures"]) == 3


def test_a_loss_that_is_not_finite_is_a_failure(monkeypatch):
    monkeypatch.setattr(configs, "_made", lambda name, fields, door: None)
    monkeypatch.setattr(configs, "_trained", lambda name, config: float("nan"))
    found = configs.edits(count=2, seed=0)
    assert [failure.endswith("nothing was said") for failure in found["failures"]] == [True, True]


@dataclasses.dataclass(frozen=True)
class Inner:
    """Settings within settings."""

    flag: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """One field of every kind."""

    whole: int = 3
    real: float = 0.5
    endless: float = float("inf")
    text: str = "a"
    maybe: int | None = None
    many: tuple[float, ...] = (0.1,)
    inner: Inner = dataclasses.field(default_factory=Inner)


@pytest.mark.parametrize(
    "fields",
    [{}, {"real": 1}, {"endless": float("inf")}, {"maybe": 4}, {"many": (1, 0.5)}, {"many": ()}],
)
def test_right_kinds_pass(fields):
    typed(Config(**fields))


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"whole": 3.0}, TypeError, "whole is 3.0, expected an integer; 3 is usual"),
        ({"whole": True}, TypeError, "whole is True, expected an integer"),
        ({"whole": "4"}, TypeError, "whole is the string '4', expected an integer: write whole=4"),
        ({"whole": 2**31}, ValueError, "whole is 2147483648, expected an integer of 32 bits"),
        ({"real": "x"}, TypeError, "real is the string 'x', expected a number; 0.5 is usual"),
        ({"real": float("inf")}, ValueError, "real is inf, expected a finite number"),
        ({"real": 1e300}, ValueError, "real is 1e[+]300, expected at most 3.4e38"),
        ({"endless": float("nan")}, ValueError, "endless is nan, expected a finite number"),
        ({"text": 3}, TypeError, "text is 3, expected a text; 'a' is usual"),
        ({"maybe": "x"}, TypeError, "maybe is the string 'x', expected an integer, such as 10"),
        ({"many": 0.1}, TypeError, r"many is 0.1, expected a tuple: write many=\(0.1,\)"),
        ({"many": (0.1, None)}, TypeError, r"many\[1\] is None, expected a number; 0.1 is usual"),
    ],
)
def test_wrong_kinds_are_named(fields, kind, said):
    with pytest.raises(kind, match=said):
        typed(Config(**fields))


def test_a_switch_takes_no_word(capsys):
    assert settings.switches(Inner, ["--flag", "--other", "x"]) == ""
    assert "--no-flag was given 'no'" in settings.switches(Inner, ["--no-flag", "no"])
    assert main(["train", "mnist1d", "--decay", "yes"]) == 2
    assert "--decay was given 'yes', expected --decay alone" in capsys.readouterr().err
