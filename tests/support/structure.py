"""What the package is made of, read from its source: rooms, imports, sizes, names.

    python tests/support/structure.py

prints the measures; `test_architecture.py` holds them to the rules of the house.
"""

import ast
import collections
import io
import re
import statistics
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path


SOURCE = Path(__file__).resolve().parents[2] / "src" / "learndyn"

ROOMS = (
    *("errors", "probes", "record", "diagnose", "measure", "forces", "show", "train"),
    *("world", "paper", "cli"),
)
"""From the ground up: a room imports only from rooms before it. `paper` is the topmost
room of content; `cli` is the street door of all of them."""


@dataclass(frozen=True)
class Import:
    """One imported name, and when the statement runs."""

    line: int
    module: str
    """Such as `learndyn.record`, or `torch`."""
    name: str | None
    """What is taken from the module; None for `import module`."""
    lazy: bool
    """Inside a function: it runs when the function does."""
    typing: bool
    """Under TYPE_CHECKING: it never runs."""

    @property
    def full(self) -> str:
        """The module and the name taken from it, dotted."""
        return f"{self.module}.{self.name}" if self.name else self.module


@dataclass(frozen=True)
class Module:
    """One file of the package."""

    path: Path

    @property
    def file(self) -> str:
        """Its name inside the package, such as `record/files.py`."""
        return self.path.relative_to(SOURCE).as_posix()

    @property
    def dotted(self) -> str:
        """Its name for `import`."""
        parts = self.path.relative_to(SOURCE.parent).with_suffix("").parts
        return ".".join(parts).removesuffix(".__init__")

    @property
    def room(self) -> str:
        """The room that it belongs to; "" for the package's own `__init__`."""
        first = self.path.relative_to(SOURCE).parts[0].removesuffix(".py")
        return {"__init__": "", "__main__": "cli"}.get(first, first)

    @cached_property
    def text(self) -> str:
        """Its source."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, wherever it stands."""
        return list(_imports(self.tree, lazy=False, typing=False))

    @property
    def lines(self) -> int:
        """How many lines it has."""
        return self.text.count("\n")

    @property
    def functions(self) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
        """All its functions and methods."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node

    @cached_property
    def public(self) -> dict[str, int]:
        """Line of every top-level name that does not begin with `_`."""
        found: dict[str, int] = {}
        for node in self.tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found[node.name] = node.lineno
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                names = (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
                found |= dict.fromkeys(names, node.lineno)
        return {name: line for name, line in found.items() if name[0] != "_"}

    @property
    def comments(self) -> int:
        """Lines that hold a comment."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return len({t.start[0] for t in tokens if t.type == tokenize.COMMENT})


def _imports(node: ast.AST, *, lazy: bool, typing: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ImportFrom):
            assert child.level == 0, f"line {child.lineno}: relative import"
            for alias in child.names:
                yield Import(child.lineno, child.module or "", alias.name, lazy, typing)
        elif isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(child.lineno, alias.name, None, lazy, typing)
        else:
            inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            guarded = isinstance(child, ast.If) and (
                "TYPE_CHECKING" in ast.unparse(child.test)
            )
            yield from _imports(child, lazy=lazy or inner, typing=typing or guarded)


@cache
def modules() -> tuple[Module, ...]:
    """All files of the package, in the order of their names."""
    return tuple(Module(path) for path in sorted(SOURCE.rglob("*.py")))


@cache
def by_name() -> dict[str, Module]:
    """Every module by its dotted name."""
    return {module.dotted: module for module in modules()}


def imported(module: Module) -> Iterator[tuple[Import, Module]]:
    """Every import of a module of ours, with that module.

    A name that `learndyn` offers leads to the module that defines it.
    """
    offered = {f"learndyn.{name}": source for source, name in _door()}
    for item in module.imports:
        source = offered.get(item.full, item.full)
        target = by_name().get(source) or by_name().get(item.module)
        if target is not None and item.module.split(".")[0] == "learndyn":
            yield item, target


def circles() -> list[list[str]]:
    """Groups of modules that import each other when they load, or for type checkers.

    An import inside a function is left out: it runs after both modules have loaded.
    """
    graph = {
        m.file: {t.file for i, t in imported(m) if not i.lazy and t is not m}
        for m in modules()
    }
    return [sorted(group) for group in _strongly_connected(graph) if len(group) > 1]


def _strongly_connected(graph: dict[str, set[str]]) -> list[set[str]]:
    """Groups whose members all reach each other."""
    reach = {node: _reachable(graph, node) for node in graph}
    groups: list[set[str]] = []
    for node in graph:
        if not any(node in group for group in groups):
            groups.append({node} | {n for n in reach[node] if node in reach[n]})
    return groups


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen, queue = set[str](), [start]
    while queue:
        for node in graph[queue.pop()] - seen:
            seen.add(node)
            queue.append(node)
    return seen


def unused_public() -> list[str]:
    """Public top-level names that no other module of the package uses.

    What `learndyn/__init__.py` offers is used by it. A name in the signature of a used
    one is used with it: whoever calls a function holds what it takes and returns.
    """
    used = _used_elsewhere()
    for module_name, name in _door():
        used[module_name].add(name)
    return [
        f"{module.file}:{line} {name}"
        for module in modules()
        if module.file not in ("__init__.py", "cli/__init__.py")
        for used_here in [_with_signatures(module, used[module.dotted])]
        for name, line in module.public.items()
        # `python -m` runs main; nothing imports it
        if name not in used_here and name != "main"
    ]


def _used_elsewhere() -> dict[str, set[str]]:
    """For every module, the names that other modules take from it."""
    used = collections.defaultdict(set)
    for module in modules():
        aliases: dict[str, str] = {}
        for item, target in imported(module):
            if item.name and target.dotted == item.full:  # a module, taken as a name
                aliases[item.name] = target.dotted
            elif item.name:
                used[target.dotted].add(item.name)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used[aliases.get(node.value.id, "")].add(node.attr)
    return used


def _with_signatures(module: Module, names: set[str]) -> set[str]:
    """`names`, and the module's own names in their signatures, theirs, and so on."""
    own = {name: node for node in module.tree.body for name in _defined_by(node)}
    seen, queue = set(names), [name for name in names if name in own]
    while queue:
        for name in _signature(own[queue.pop()]) & own.keys() - seen:
            seen.add(name)
            queue.append(name)
    return seen


def _defined_by(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _signature(node: ast.stmt) -> set[str]:
    """Names in the annotations and bases of a definition, or in the value of an alias;
    private methods are left out."""
    parts: list[ast.AST | None] = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
            if inner.name[0] != "_" or inner.name.startswith("__"):
                arguments = (n for n in ast.walk(inner.args) if isinstance(n, ast.arg))
                parts += [inner.returns, *(a.annotation for a in arguments)]
        elif isinstance(inner, ast.AnnAssign):
            parts.append(inner.annotation)
    parts += node.bases if isinstance(node, ast.ClassDef) else []
    parts += [node.value] if isinstance(node, ast.Assign) else []
    texts = " ".join(ast.unparse(part) for part in parts if part is not None)
    return set(re.findall(r"[A-Za-z_]\w*", texts))


@cache
def _door() -> set[tuple[str, str]]:
    """Module and name of all that `import learndyn` offers."""
    tree = by_name()["learndyn"].tree
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            pairs = zip(node.keys, node.values, strict=True)
            found |= {
                (value.value, key.value)
                for key, value in pairs
                if isinstance(key, ast.Constant) and isinstance(value, ast.Constant)
            }
    return found


def folders() -> dict[str, int]:
    """Modules of every folder, its `__init__` left out."""
    return dict(
        collections.Counter(
            m.path.parent.relative_to(SOURCE.parent).as_posix()
            for m in modules()
            if m.path.name != "__init__.py"
        )
    )


def comments_per_100(room: str) -> float:
    """Lines with a comment, of 100 lines."""
    inside = [m for m in modules() if m.room == room]
    return 100 * sum(m.comments for m in inside) / sum(m.lines for m in inside)


def main() -> None:
    """Print the measures."""
    sizes = [m.lines for m in modules() if m.lines]
    core = sum(m.lines for m in modules() if m.room != "paper")
    lengths = [
        (f.end_lineno or 0) - f.lineno + 1 for m in modules() for f in m.functions
    ]
    widest = max(folders().items(), key=lambda item: item[1])
    print(f"files {len(sizes)}, lines {sum(sizes)}, without paper/ {core}")
    print(f"median file {statistics.median(sizes):.0f}, longest {max(sizes)}")
    print(f"median function {statistics.median(lengths):.0f}, longest {max(lengths)}")
    print(f"widest folder {widest[0]}: {widest[1]} modules")
    print(f"import circles {circles()}")
    print(f"public names that no other module uses {len(unused_public())}")
    for room in ("measure", "forces", "train"):
        print(f"comments in 100 lines of {room}: {comments_per_100(room):.1f}")


if __name__ == "__main__":
    main()
