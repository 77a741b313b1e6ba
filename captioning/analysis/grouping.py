"""Evaluated runs that differ in nothing but their seed are a group, and a group is named by what tells it from the others."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from captioning.analysis.results import Evaluated
from captioning.errors import UserError, did_you_mean

SEARCH = "eval.search"  # settings of the evaluation; those of `search` are of the run's validations, which chose its best checkpoint
WEIGHTS = "encoder.weights.sha256"  # of a file or folder


class Member(NamedTuple):
    """An evaluation of a trained run."""

    path: str  # the run's, or that of a folder in it for another evaluation
    run: str  # one for all evaluations of the same weights
    seed: int
    settings: dict[str, Any]  # `decoder`: the choice; `decoder.injection` ...: every key in it. Only those that make a run another one
    usual: dict[str, Any]  # what these choices have for the keys if nothing else is said
    evaluated: Evaluated
    progress: dict[str, Any]  # as in `last/state.json`: history, seconds, peak_memory ...
    machine: str  # that it was trained on


class Group(NamedTuple):
    name: str
    members: list[Member]


def grouped(members: Sequence[Member], by: Sequence[str] = ()) -> list[Group]:
    """Groups in the order of their first runs. by: settings that alone make groups; without, all do."""
    known = {key for member in members for key in member.settings}
    for key in by:
        if key not in known:
            raise UserError(f"--by {key}: no run has such a setting.{did_you_mean(key, known)}")
    groups: dict[str, list[Member]] = {}
    for member in members:
        keys = by or sorted(member.settings)
        groups.setdefault(repr([(key, member.settings.get(key)) for key in keys]), []).append(member)
    its = list(groups.values())
    return [Group(name, group) for name, group in zip(names([group[0] for group in its], by), its)]


def names(members: Sequence[Member], by: Sequence[str] = ()) -> list[str]:
    """`gru merge`, `attention hidden_size=256`: the settings in which these runs, one of each group, differ.

    A setting that follows from a choice (every `vgg16` has `pooled=fc2`) is not said beside it.
    """
    keys = by or dict.fromkeys(key for member in members for key in sorted(member.settings, key=order))
    told = [key for key in keys if differs(members, key, by)]
    last = Counter(key.rpartition(".")[2] for key in told)
    found = [" ".join(filter(None, (said(member, key, last) for key in told))) for member in members]
    if len(members) == 1:
        found = [" ".join(str(members[0].settings[key]) for key in ("encoder", "decoder") if key in members[0].settings) or "all"]
    again = Counter(found)
    return [name if again[name] == 1 and name else f"{name or 'group'} ({place})" for place, name in enumerate(found, start=1)]


def labels(groups: Sequence[Group]) -> dict[str, str]:
    """Of each run, by its path: its group's name, with the seed where there are several, and with the path where these are equal."""
    found = {}
    for name, members in groups:
        seeds = Counter(member.seed for member in members)
        for member in members:
            seed = f" seed={member.seed}" if len(members) > 1 else ""
            found[member.path] = name + seed + (f" ({member.path})" if seeds[member.seed] > 1 else "")
    return found


def order(key: str) -> tuple:
    """The encoder and the decoder first, choices before what they consist of."""
    node, _, rest = key.partition(".")
    first = {"encoder": 0, "decoder": 1}.get(node, 2)
    return first, node, bool(rest), rest


def differs(members: Sequence[Member], key: str, by: Sequence[str]) -> bool:
    values = [member.settings[key] for member in members if key in member.settings]
    if key.endswith("_target_") or all(value == values[0] for value in values):
        return False
    if key == WEIGHTS:  # of another encoder they are others anyway
        known = {(member.settings.get("encoder"), member.settings[key]) for member in members if key in member.settings}
        return len(known) > len({encoder for encoder, _ in known})
    if by or "." not in key:
        return True
    return any(key in member.settings and member.settings[key] != member.usual.get(key) for member in members)


def said(member: Member, key: str, last: Counter) -> str:
    """Choices and the decoder's own words (`merge`) speak for themselves; other values come with their key."""
    if key not in member.settings:
        return ""
    node, _, rest = key.partition(".")
    value, name = str(member.settings[key]), rest.rpartition(".")[2]
    if not rest or (node == "decoder" and re.fullmatch(r"[a-z]\w*", value)):
        return value
    return f"{key if last[name] > 1 else name}={value}"


def pooled(group: Group) -> list[str]:
    """Settings in which the runs of one group differ, which only `by` can have put together."""
    first, *others = (member.settings for member in group.members)
    keys = {key for its in others for key in first.keys() | its.keys() if first.get(key) != its.get(key)}
    return sorted(key for key in keys if not key.endswith("_target_"))


def again(group: Group) -> tuple[Member, Member] | None:
    """Two evaluations of one run, or two runs of the same settings and seed: one run twice, which says nothing of seeds."""
    seen: dict[str, Member] = {}
    for member in group.members:
        for key in (member.run, repr((member.seed, sorted(member.settings.items(), key=lambda item: item[0])))):
            if seen.setdefault(key, member) is not member:
                return seen[key], member
    return None
