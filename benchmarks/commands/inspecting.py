"""The commands `inspect` and `tokens`: their flags, and what they do."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from benchmarks.commands.flags import add_subject, given


def add_inspect(add: Callable[..., ArgumentParser]) -> None:
    """Adds `inspect`; `add` is that of the subparsers."""
    sub = add(
        "inspect",
        help="analyse where a model represents refusal, and what attacks do",
        description="Write a page with figures of where a model represents refusal, and what "
        "attacks do. What is fitted and measured is kept: interrupted, the same command goes on.",
    )
    sub.set_defaults(command=inspect)
    sub.add_argument("--model", required=True, metavar="M", help="shipped name, folder or Hub id")
    add_subject(
        sub,
        "behaviours to fit on (pocket models: pocket-train)",
        "behaviours to analyse (pocket models: pocket-test)",
    )
    for flag, meta, text in (
        ("--limit", "N", "test prompts, harmful and harmless each (default: 128)"),
        ("--attacked", "N", "test prompts that are attacked (default: 8)"),
        ("--steps", "N", "steps of each attack, at most (default: 12)"),
        ("--width", "N", "candidates of each of these steps (default: 128)"),
        ("--restarts", "N", "strings searched that align with the direction (default: 8; 0: none)"),
        ("--seed", "S", "random seed of splits and searches"),
    ):
        sub.add_argument(flag, type=int, metavar=meta, help=text)
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the report (default: runs/inspect-M)"
    )
    sub.add_argument(
        "--artefacts",
        type=Path,
        metavar="DIR",
        help="reuse what was fitted and measured from here (an earlier DIR/artefacts)",
    )
    sub.add_argument(
        "--no-texts",
        dest="texts",
        action="store_false",
        default=None,
        help="for sharing: no prompts, strings that were found or answers in the report (default "
        "folder: runs/inspect-M-shared); what is fitted stays in runs/inspect-M/artefacts",
    )


def add_tokens(add: Callable[..., ArgumentParser]) -> None:
    """Adds `tokens`; `add` is that of the subparsers."""
    sub = add("tokens", help="study a model's control tokens: thresholds and categories")
    sub.set_defaults(command=tokens)
    sub.add_argument("--model", required=True, metavar="M", help="shipped name, folder or Hub id")
    add_subject(
        sub,
        "behaviours to choose thresholds on (pocket models: pocket-categories-train)",
        "behaviours to test on (pocket models: pocket-categories-test)",
    )
    sub.add_argument("--limit", type=int, metavar="N", help="prompts, harmful and harmless each")
    sub.add_argument(
        "--temperature", type=float, metavar="T", help="temperature of the probabilities"
    )
    sub.add_argument("--suffix", type=int, metavar="N", help="random tokens after each request")
    sub.add_argument(
        "--out", type=Path, metavar="DIR", help="folder for the report (default: runs/tokens-M)"
    )


def inspect(args: Namespace) -> int:
    """`inspect`: writes a page about the model, with pictures, and says where."""
    from benchmarks.inspect import Options, inspect

    print(inspect(Options(**given(args, Options))))
    return 0


def tokens(args: Namespace) -> int:
    """`tokens`: writes a page about the model's control tokens, and says where."""
    from benchmarks.tokens import Options, tokens

    print(tokens(Options(**given(args, Options))))
    return 0
