"""Every English text that the code can say to a person: read from the source, since a text that nobody lists stays English.

A template has its fields numbered: f"cannot write {path}: {error}" is "cannot write {0}: {1}".
"""

import ast
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hyperbrush
from hyperbrush.translation import GUESSED, UNGUESSED

SOURCE = Path(hyperbrush.__file__).parent
ERRORS = ("UserError", "NotThere", "UnknownHypernetwork", "ValueError")
PLACE = re.compile(r"^(\{\d+\}[:, ]*)*\{\d+\}: ")  # said behind a place: what follows it is looked for alone
SHOWN = ("console.note", "console.done")  # the terminal's results and remarks
LEAST = 6  # letters of a text with fields
Node = ast.AST
PASSED_ON = {  # arguments that another error has said already, or a list of them
    "'; '.join(wrong)",
    "'; '.join(wrong_settings(model, error))",
    "'; '.join(wrong_settings(Preferences, error))",
    """'; '.join((f"{r['name']}: {r['reason']}" for r in done.refused[:5]))""",
    "'; '.join(problems)",
    "job.error",
    "reason",
    "self.t('create.no_prompt')",
    "str(error)",
    "str(error).replace(str(file), f'{name:.100}')",
    "str(known)",
    "why",
}
TABLES = {
    "cli/__init__": ("FIRST",),
    "setting_errors": ("WORDS",),
    "training/report/report": ("EVENTS",),
}  # dictionaries at the top of a file, whose values are said
SPEAKERS: dict[str, tuple[str, ...]] = {  # functions that say something in their own words, beside errors
    "setting_errors": ("_describe", "in_words"),
    "app/styles/generators": ("generators",),
    "cli/console": ("stopped",),
    "cli/doctor": ("doctor",),
    "commands/doctor": ("examine", "_environment", "_file", "_on_the_unet", "_pictures", "_subjects"),
    "generation/loras": ("loras_at_work", "_reached"),
    "generation/prompt_networks": ("*",),
    "generation/batches": ("_notes",),
    "generation/prompt_notes": ("prompt_notes", "near_editing"),
    "generation/repeat": ("repeat_of", "renamed", "differences", "lora_differences", "_notes_on_noise"),
    "generation/text_to_image": ("unknown_words",),
    "hypernetworks/attaching/reach": ("__str__", "_explain"),
    "hypernetworks/convert/report": ("lost", "__str__"),
    "hypernetworks/library/inspection": ("*",),
    "hypernetworks/library/library": ("_inside",),
    "training/report/result": ("judged", "summary"),
    "training/report/report": ("run_figures", "report_run", "loss_chart", "rate_chart"),
    "training/before/findings": ("*",),
    "training/before/preflight": ("*",),
    "training/loop/judge": ("train", "validate", "patience_exceeded"),
    "training/loop/optimizers": ("advice",),
    "training/loop/trainer": ("_go_on", "_loop", "_one_step", "_check", "_go_back", "_after"),
}
STATES = ("queued", "running", "paused", "stopped", "done", "failed", "none")  # translated in a field too
ALONE = (
    "differs",
    "bit-equal",
    "bit-identical",
    "read",
    "kind",
    "file",
    "networks",
    "reached",
    "fused",
    "versions",
)
ALONE += (
    "machine",
    "model",
    "pictures",
    "yes",
    "no",
    "exactly",
    "Steps",
    "Time",
    "Loss",
    "Settings",
    "training",
    "validation",
    "step",
    "diverges",
    "overfits",
    "resumed",
    "restart",
)
OTHERS = (  # said by the command line, by click, or by the system of whoever runs it
    "stopped",
    "see hyperbrush --help",
    "stopping; once more to stop at once",
    "No such option: {0}",
    "No such option: {0} Did you mean {1}?",
    "No such option: {0} (Possible options: {1})",
    "No such command {0}.",
    "Missing argument {0}.",
    "Missing option {0}.",
    "Missing command.",
    "Invalid value for {0}: {1}",
    "{0} is not a valid integer.",
    "{0} is not a valid int.",
    "{0} is not a valid float.",
    "{0} is not a valid boolean.",
    "{0} is not one of {1}.",
    "{0} is not in the range {1}.",
    "Option {0} requires an argument.",
    "Option {0} requires {1} arguments.",
    "Got unexpected extra argument ({0})",
    "Got unexpected extra arguments ({0})",
    "No such file or directory",
    "Permission denied",
    "No space left on device",
    "Is a directory",
    "Not a directory",
    "File exists",
    "File name too long",
    "Read-only file system",
    "Directory not empty",
    "Address already in use",
    "Cannot assign requested address",
    "Name or service not known",
    "Connection refused",
    "{0} (got {1})",
    "make room on the server",
    "Learning rate",
    "What happened",
    "What to try next",
    "best: {0}",
    "try: {0}",
    "{0} at step {1}, {2} below {3} of the bare model",
    "{0} at step {1}",
    *(f"{{0}} {what} cannot be used" for what in ("pictures", "captions", "masks")),
    "{0} files are not read",
    "for another model",
    "{0} (near: {1})",
    *(f"={word}" for word in STATES),
    *(f"#{word}" for word in ALONE),
)
NOT_SAID = {"Value error, ", "unknown {0} {1}{2} Known: {3}{4}", "did you mean {0}?"}  # see `translation`


@dataclass
class Said:
    """What is said: template → where; and the arguments of errors that no text was found for."""

    templates: dict[str, str] = field(default_factory=dict)
    untold: list[str] = field(default_factory=list)

    def add(self, template: str, where: str, *, kind: bool = False) -> None:
        """Each line of a template, if there are words in it; kind: a single word is one too, see `unknown_name`."""
        for line in template.split("\n"):
            one = renumbered(PLACE.sub("", line.removeprefix("; ")))
            words = re.sub(r"\{\d+\}", "", one)
            letters = len(re.findall(r"[A-Za-z]", words))
            if one in NOT_SAID or letters < 2 or (words != one and letters < LEAST and one not in OTHERS):
                continue  # "{0} is {1}" would be found in anything
            if kind or words != one or " " in one:  # a word alone is a name
                self.templates.setdefault(one, where)


def renumbered(template: str) -> str:
    """Fields numbered from 0 as they come."""
    numbers = iter(range(99))
    return re.sub(r"\{\d+\}", lambda _: f"{{{next(numbers)}}}", template)


def everything() -> Said:
    """All errors of the source."""
    said = Said()
    for path in sorted(SOURCE.rglob("*.py")):
        _File(path, said).read()
    for text in (GUESSED, UNGUESSED, *OTHERS):
        said.add(text, "others", kind=True)
    return said


class _File:
    def __init__(self, path: Path, said: Said) -> None:
        self.name = path.relative_to(SOURCE).with_suffix("").as_posix()
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.said = said
        self.scopes = [
            n for n in ast.walk(self.tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        self.functions = {n.name: n for n in self.scopes}

    def read(self) -> None:
        seen: set[int] = set()
        for scope in reversed([self.tree, *self.scopes]):  # the innermost first
            for node in ast.walk(scope):
                if not isinstance(node, ast.Call) or id(node) in seen:
                    continue
                if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in SHOWN and node.args:
                    seen.add(id(node))
                    for text in self.texts(node.args[0], scope):
                        self.said.add(text, self.name)
                if not isinstance(node.func, ast.Name):
                    continue
                if node.func.id in ERRORS and node.args:
                    seen.add(id(node))
                    found = self.texts(node.args[0], scope)
                    if not found and ast.unparse(node.args[0]) not in PASSED_ON:
                        self.said.untold.append(f"{self.name}: {ast.unparse(node.args[0])[:80]}")
                    for text in found:
                        self.said.add(text, self.name)
                elif node.func.id == "unknown_name" and node.args:
                    seen.add(id(node))
                    for kind in self.texts(node.args[0], scope):
                        self.said.add(kind, self.name, kind=True)
                    for hint in self.texts(node.args[3], scope) if len(node.args) > 3 else []:
                        self.said.add(f"{{0}}{hint}", self.name)
        for name in SPEAKERS.get(self.name, ()):
            for scope in [self.tree] if name == "*" else [one for one in self.scopes if one.name == name]:
                self.speak(scope)
        for name in TABLES.get(self.name, ()):
            for value in next(_given(name, self.tree)).values:  # type: ignore[attr-defined]
                self.said.add(re.sub(r"\{\w+\}", "{0}", ast.literal_eval(value)), self.name)

    def speak(self, function: Node) -> None:
        """All that a function has between quotation marks with a space in it, but for its docstring."""
        waiting: list[Node] = [*ast.iter_child_nodes(function)]
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.arg | ast.Subscript) or (
                isinstance(node, ast.Expr) and _is_text(node.value)
            ):
                continue
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "of":
                for text in self.texts(node.args[3], function):  # `Finding.of` counts what it is about
                    self.said.add(f"{{0}} {text}", self.name)
                waiting += [node.args[2], node.args[4]]
            elif isinstance(node, ast.JoinedStr | ast.BinOp) or _is_text(node):
                for text in self.texts(node, function):
                    self.said.add(text, self.name)
            else:
                hints = {id(getattr(node, name, None)) for name in ("returns", "annotation")}
                waiting += [child for child in ast.iter_child_nodes(node) if id(child) not in hints]

    def texts(self, node: Node, scope: Node, depth: int = 0) -> list[str]:
        """What an expression can say, with numbered fields; the texts that its fields can be are added on the way."""
        if depth > 6:
            return []
        match node:
            case ast.Constant(value=str(value)):
                return [value]
            case ast.JoinedStr(values=values):
                pieces = [self._pieces(value, scope, depth) for value in values]
                return ["".join(chosen) for chosen in itertools.product(*pieces)]
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                before, after = self.texts(left, scope, depth + 1), self.texts(right, scope, depth + 1)
                return [a + b for a in before or ["{0}"] for b in after or ["{0}"]] if before + after else []
            case ast.IfExp(body=body, orelse=orelse):
                return self.texts(body, scope, depth + 1) + self.texts(orelse, scope, depth + 1)
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.texts(value, scope, depth + 1)]
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name):
                given = list(_given(name, scope)) or list(_given(name, self.tree))
                return [text for value in given for text in self.texts(value, scope, depth + 1)]
            case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[inner]):
                for text in self.texts(inner, scope, depth + 1):
                    self.said.add(text, self.name)
                return []
            case ast.List(elts=values) | ast.Tuple(elts=values):
                return [text for value in values for text in self.texts(value, scope, depth + 1)]
            case ast.ListComp(elt=inner) | ast.GeneratorExp(elt=inner):
                return self.texts(inner, scope, depth + 1)
            case ast.Call(func=ast.Name(id=name)) if name in self.functions and name not in ERRORS:
                return self.returned(self.functions[name], depth)
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)) if name in self.functions:
                return self.returned(self.functions[name], depth)
        return []

    def returned(self, function: Node, depth: int) -> list[str]:
        """What a function of this file can return."""
        return [
            text
            for node in ast.walk(function)
            if isinstance(node, ast.Return) and node.value is not None
            for text in self.texts(node.value, function, depth + 1)
        ]

    def _pieces(self, value: Node, scope: Node, depth: int) -> list[str]:
        """What stands in one place of an f-string: its text, a field, or either of two texts."""
        if isinstance(value, ast.Constant):
            return [str(value.value)]
        assert isinstance(value, ast.FormattedValue)
        if isinstance(value.value, ast.IfExp):
            ways = [self.texts(way, scope, depth + 1) for way in (value.value.body, value.value.orelse)]
            if all(map(_is_text, (value.value.body, value.value.orelse))) or any(
                " " in t for w in ways for t in w
            ):
                return [text for way in ways for text in way or ["{0}"]]
        for text in self.texts(value.value, scope, depth + 1):
            if " " in text.strip():  # a word alone is a name
                self.said.add(text, self.name)
        return ["{0}"]


def _is_text(node: Node) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _given(name: str, scope: Node) -> Iterator[Node]:
    """What a name in a function is given, or is made longer by."""
    for node in ast.walk(scope):
        match node:
            case ast.Assign(targets=[ast.Name(id=target)], value=value) if target == name:
                yield value
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.AST() as value) if target == name:
                yield value
            case ast.NamedExpr(target=ast.Name(id=target), value=value) if target == name:
                yield value
            case ast.AugAssign(target=ast.Name(id=target), value=value) if target == name:
                yield value
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                for one, value in zip(targets, values, strict=False):
                    if isinstance(one, ast.Name) and one.id == name:
                        yield value
            case ast.Call(func=ast.Attribute(value=ast.Name(id=target), attr="append"), args=[value]):
                if target == name:
                    yield value


if __name__ == "__main__":
    found = everything()
    for number, (template, where) in enumerate(found.templates.items()):
        print(f"{number}\t{where}\t{template}")
    print(*found.untold, sep="\n")
