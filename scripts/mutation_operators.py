"""All small faults that can be put into a module, as replacements in its text.

The operators are those that mutmut, Cosmic Ray and MutPy have in common, and a few more: an
operand, an element, a keyword or a statement left out. What is left alone is what no test should
see, or what every test sees:

- docstrings, annotations, aliases of types, `if TYPE_CHECKING`, `__repr__`, `__all__`, assertions,
  imports, `lambda: None`;
- log calls as a whole; the words of an error and of a command's help (what is put into those
  words is not left alone);
- decorators, and the promises of a class to the type checker (`frozen`, `slots`, `kw_only`);
- statements that delete folders or signal processes;
- an operator beside a text literal, and the only binding of a local name: such faults end in a
  TypeError or a NameError, which any test that gets there sees.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

SWAPS: dict[type[ast.AST], list[str]] = {
    ast.Lt: ["<=", ">="],
    ast.LtE: ["<", ">"],
    ast.Gt: [">=", "<="],
    ast.GtE: [">", "<"],
    ast.Eq: ["!="],
    ast.NotEq: ["=="],
    ast.Is: ["is not"],
    ast.IsNot: ["is"],
    ast.In: ["not in"],
    ast.NotIn: ["in"],
    ast.Add: ["-"],
    ast.Sub: ["+"],
    ast.Mult: ["/"],
    ast.Div: ["*"],
    ast.FloorDiv: ["/"],
    ast.Mod: ["*"],
    ast.Pow: ["*"],
    ast.LShift: [">>"],
    ast.RShift: ["<<"],
    ast.BitAnd: ["|"],
    ast.BitOr: ["&"],
    ast.BitXor: ["&"],
}
COMPARISON = re.compile(rb"not\s+in\b|is\s+not\b|[<>=!]=|<|>|\bin\b|\bis\b")
ARITHMETIC = re.compile(rb"(\*\*|//|<<|>>|[-+*/%&|^@])")
QUOTED = re.compile(rb"([A-Za-z]*)(\"\"\"|'''|\"|')(.*)\2", re.DOTALL)
LOGS = {"log", "logger", "logging"}
PROMISES = {"frozen", "slots", "kw_only", "eq", "order", "gc", "weakref"}
HELP = {"help", "description", "epilog", "metavar", "usage"}
DANGEROUS = {"rmtree", "kill", "killpg"}
ALIASED = {"Callable", "Literal", "Annotated", "Union", "Optional", "Mapping", "Sequence"}
NAMES_OF_TYPES = {"cast", "TypeVar", "NewType"}
PAIRS = {"min": b"max", "max": b"min", "any": b"all", "all": b"any"}


@dataclass(frozen=True)
class Place:
    """A piece of a module's text that can be replaced by something wrong."""

    operator: str
    start: int
    end: int
    wrong: tuple[bytes, ...]
    lines: frozenset[int]
    """Whoever executes one of these meets the fault; none: it is met at import."""
    names: tuple[str, ...]
    """What a statement outside of functions defines."""


@dataclass(frozen=True)
class Around:
    """Where a node stands."""

    function: ast.AST | None = None
    lines: frozenset[int] = frozenset()
    names: tuple[str, ...] = ()
    bound: dict[str, int] = field(default_factory=dict)
    is_prose: bool = False


class Module:
    """One module's text, and the faults that can be put into it."""

    def __init__(self, text: bytes) -> None:
        self._text = text
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._tree = ast.parse(text)
        self._meaning = ast.dump(self._tree)

    def places(self) -> list[Place]:
        """All places, in the text's order."""
        found: dict[tuple[int, int, str], Place] = {}
        for place in self._of_body(self._tree.body, Around()):
            found.setdefault((place.start, place.end, place.operator), place)
        return [found[key] for key in sorted(found)]

    def put(self, place: Place, wrong: bytes) -> bytes:
        """The text with one fault in it."""
        return self._text[: place.start] + wrong + self._text[place.end :]

    def is_fault(self, place: Place, wrong: bytes) -> bool:
        """Whether the text with it can be compiled without a warning, and means something else."""
        text = self.put(place, wrong)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                tree = ast.parse(text)
                if ast.dump(tree) == self._meaning:
                    return False
                compile(tree, "fault", "exec", dont_inherit=True)
            except (SyntaxError, SyntaxWarning):
                return False
        return True

    def _start(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        return self._starts[node.lineno - 1] + node.col_offset

    def _end(self, node: ast.expr | ast.stmt | ast.keyword) -> int:
        return self._starts[(node.end_lineno or 1) - 1] + (node.end_col_offset or 0)

    def _written(self, node: ast.expr) -> bytes:
        text = self._text[self._start(node) : self._end(node)]
        is_one = isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Constant)
        return text if is_one else b"(" + text + b")"

    def _place(
        self, operator: str, node: ast.expr | ast.stmt, around: Around, *wrong: bytes
    ) -> Place:
        span = self._start(node), self._end(node)
        return Place(operator, *span, wrong, around.lines, around.names)

    def _token(
        self, operator: str, span: tuple[int, int], pattern: re.Pattern[bytes], around: Around,
        wrong: list[str],
    ) -> Iterator[Place]:  # fmt: skip
        found = pattern.search(self._text, *span)
        if found and wrong:
            new = tuple(word.encode() for word in wrong)
            yield Place(operator, *found.span(), new, around.lines, around.names)

    def _of_body(self, body: list[ast.stmt], around: Around) -> Iterator[Place]:
        for statement in body:
            yield from self._of_statement(statement, around)

    def _of_statement(self, node: ast.stmt, around: Around) -> Iterator[Place]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from self._of_function(node)
        elif isinstance(node, ast.ClassDef):
            for keyword in node.keywords:
                if keyword.arg not in PROMISES:
                    yield from self._of(keyword.value, replace(around, names=(node.name,)))
            yield from self._of_body(node.body, Around())
        elif not is_left_alone(node):
            names = tuple(defined(node)) if around.function is None else ()
            if "__all__" not in names:
                here = replace(around, lines=self._lines(node, around), names=names)
                yield from self._of_simple(node, here)

    def _of_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[Place]:
        if node.name == "__repr__":
            return
        body = frozenset(range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1))
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            if default is not None:
                for place in self._of(default, Around(node, body)):
                    yield replace(place, operator="default")
        bound: dict[str, int] = {}
        for arg in ast.walk(node.args):
            if isinstance(arg, ast.arg):
                bound[arg.arg] = 1
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                bound[inner.id] = bound.get(inner.id, 0) + 1
        yield from self._of_body(node.body, Around(node, body, (), bound))

    def _lines(self, node: ast.stmt, around: Around) -> frozenset[int]:
        """The lines of a statement's own part, without what is indented under it."""
        if around.function is None:
            return frozenset()
        last = node.end_lineno or node.lineno
        if isinstance(node, ast.If | ast.While):
            last = node.test.end_lineno or last
        elif isinstance(node, ast.For | ast.AsyncFor):
            last = node.iter.end_lineno or last
        elif isinstance(node, ast.With | ast.AsyncWith):
            last = node.items[-1].context_expr.end_lineno or last
        elif isinstance(node, ast.Try):
            last = node.lineno
        return frozenset(range(node.lineno, last + 1))

    def _of_simple(self, node: ast.stmt, around: Around) -> Iterator[Place]:
        """A statement that defines no function and no class."""
        if isinstance(node, ast.Expr):
            if isinstance(node.value, ast.Call | ast.Await) and around.function is not None:
                yield self._place("statement", node, around, b"pass")
        elif isinstance(node, ast.Raise):
            yield self._place("statement", node, around, b"pass")
            if isinstance(node.exc, ast.Call) and not node.exc.keywords:
                yield self._place("exception", node.exc.func, around, b"Exception")
        elif isinstance(node, ast.Assign):
            if around.function is not None and all(
                isinstance(target, ast.Attribute | ast.Subscript)
                or (isinstance(target, ast.Name) and around.bound.get(target.id, 0) > 1)
                for target in node.targets
            ):
                yield self._place("statement", node, around, b"pass")
        elif isinstance(node, ast.AugAssign):
            yield self._place("statement", node, around, b"pass")
            span = self._end(node.target), self._start(node.value)
            swapped = SWAPS.get(type(node.op), [])
            yield from self._token("assignment", span, ARITHMETIC, around, [*swapped, ""])
        elif isinstance(node, ast.Delete):
            yield self._place("statement", node, around, b"pass")
        elif isinstance(node, ast.Continue):
            yield self._place("statement", node, around, b"pass", b"break")
        elif isinstance(node, ast.Break):
            yield self._place("statement", node, around, b"continue")
        elif isinstance(node, ast.Return):
            if node.value is not None and ast.unparse(node.value) not in ("None", "False", "True"):
                yield self._place("return", node.value, around, b"None")
        elif isinstance(node, ast.If):
            yield self._place("condition", node.test, around, b"True", b"False")
        elif isinstance(node, ast.While):
            yield self._place("condition", node.test, around, b"False")
        elif isinstance(node, ast.Try):
            for handler in node.handlers:
                first = handler.lineno
                body = frozenset(range(first, (handler.end_lineno or first) + 1))
                tried = frozenset(range(node.lineno, node.body[-1].lineno + 1))
                if handler.type is not None and around.function is not None:
                    there = replace(around, lines=body or tried)
                    yield self._place("exception", handler.type, there, b"()")
                    if isinstance(handler.type, ast.Tuple):
                        yield from self._elements("exception", handler.type.elts, there)
                yield from self._of_body(handler.body, around)
        prose = replace(around, is_prose=isinstance(node, ast.Raise))
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "type_comment", "type_params"):
                continue
            if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                yield from self._of_body(value, around)
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.withitem):
                    yield from self._of(child.context_expr, around)
                elif isinstance(child, ast.match_case):
                    yield from self._of_body(child.body, around)
                    if child.guard is not None:
                        yield self._place("condition", child.guard, around, b"True", b"False")
                        yield from self._of(child.guard, around)
                elif isinstance(child, ast.expr):
                    yield from self._of(child, prose)

    def _of(self, node: ast.expr, around: Around) -> Iterator[Place]:
        """An expression and all inside it."""
        yield from self._of_alone(node, around)
        for name, value in ast.iter_fields(node):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.keyword):
                    is_prose = around.is_prose or child.arg in HELP
                    if child.arg not in PROMISES:
                        yield from self._of(child.value, replace(around, is_prose=is_prose))
                elif isinstance(child, ast.comprehension):
                    for test in child.ifs:
                        yield self._place("condition", test, around, b"True", b"False")
                    for part in [child.iter, *child.ifs]:
                        yield from self._of(part, around)
                elif isinstance(node, ast.JoinedStr):
                    if isinstance(child, ast.FormattedValue) and self._is_where_it_says(
                        child.value
                    ):
                        yield from self._of(child.value, around)
                elif isinstance(node, ast.Call) and called(node) & NAMES_OF_TYPES:
                    if name == "args" and child is not node.args[0]:
                        yield from self._of(child, around)
                elif isinstance(child, ast.expr) and not does_nothing(node):
                    yield from self._of(child, around)

    def _is_where_it_says(self, node: ast.expr) -> bool:
        """Whether a node in an f-string has its place in the text; before Python 3.12 few do."""
        try:
            text = self._text[self._start(node) : self._end(node)].decode()
            return ast.unparse(ast.parse(text, mode="eval")) == ast.unparse(node)
        except (SyntaxError, UnicodeDecodeError, ValueError):
            return False

    def _of_alone(self, node: ast.expr, around: Around) -> Iterator[Place]:
        match node:
            case ast.Compare():
                left = node.left
                for operator, right in zip(node.ops, node.comparators, strict=True):
                    span = self._end(left), self._start(right)
                    yield from self._token(
                        "comparison", span, COMPARISON, around, SWAPS[type(operator)]
                    )
                    if isinstance(right, ast.Tuple):
                        yield from self._elements("element", right.elts, around)
                    left = right
            case ast.BinOp():
                if not is_text(node.left) and not is_text(node.right):
                    span = self._end(node.left), self._start(node.right)
                    swapped = SWAPS.get(type(node.op), [])
                    yield from self._token("arithmetic", span, ARITHMETIC, around, swapped)
                    if isinstance(node.op, ast.Add | ast.Sub):
                        yield self._place("operand", node, around, self._written(node.left))
            case ast.BoolOp():
                word = b" and " if isinstance(node.op, ast.And) else b" or "
                other = b" or " if isinstance(node.op, ast.And) else b" and "
                written = [self._written(value) for value in node.values]
                yield self._place("boolean", node, around, b"(" + other.join(written) + b")")
                for left_out in range(len(written)):
                    rest = [text for i, text in enumerate(written) if i != left_out]
                    new = b"(" + word.join(rest) + b")" if len(rest) > 1 else rest[0]
                    yield replace(
                        self._place("operand", node.values[left_out], around),
                        start=self._start(node), end=self._end(node), wrong=(new,),
                        operator=f"operand {left_out + 1}",
                    )  # fmt: skip
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield self._place("unary", node, around, self._written(node.operand))
            case ast.IfExp():
                yield self._place("condition", node.test, around, b"True", b"False")
            case ast.Constant():
                yield from self._of_constant(node, around)
            case ast.JoinedStr() if not around.is_prose:
                yield from self._of_text(node, around)
            case ast.Call():
                yield from self._of_call(node, around)
            case ast.List() | ast.Set():
                yield from self._elements("element", node.elts, around)
            case ast.Dict():
                spans = [
                    (self._start(key) if key else self._start(value) - 2, self._end(value))
                    for key, value in zip(node.keys, node.values, strict=True)
                ]
                yield from self._without("element", spans, around)
            case ast.Slice():
                for bound in (node.lower, node.upper):
                    if bound is not None:
                        yield self._place("slice", bound, around, b"")

    def _of_constant(self, node: ast.Constant, around: Around) -> Iterator[Place]:
        value = node.value
        if value is True or value is False:
            yield self._place("constant", node, around, repr(not value).encode())
        elif value is None:  # `x is 0` is a warning, so that no fault of this kind is drawn there
            yield self._place("constant", node, around, b"0")
        elif isinstance(value, int | float):
            if isinstance(value, int) and abs(value) < 1000:
                new = [repr(value + 1), f"({value - 1})" if value < 1 else repr(value - 1)]
            else:
                new = [repr(value * 2), repr(value / 2 if value % 2 else value // 2)]
                new = new if value else ["1.0"]
            yield self._place("number", node, around, *(text.encode() for text in new))
        elif isinstance(value, str | bytes) and not around.is_prose:
            yield from self._of_text(node, around)

    def _of_text(self, node: ast.expr, around: Around) -> Iterator[Place]:
        quoted = QUOTED.fullmatch(self._text[self._start(node) : self._end(node)])
        if quoted:
            prefix, quote, inner = quoted.groups()
            marked = b"XX" + inner + b"XX" if inner else b"XX"
            yield self._place("text", node, around, prefix + quote + marked + quote)

    def _of_call(self, node: ast.Call, around: Around) -> Iterator[Place]:
        if called(node) & DANGEROUS:
            return
        if isinstance(node.func, ast.Name) and node.func.id in PAIRS:
            yield self._place("min/max", node.func, around, PAIRS[node.func.id])
            if node.func.id in ("min", "max") and len(node.args) > 1:
                for one in node.args:
                    place = self._place("operand", one, around)
                    span = self._start(node), self._end(node)
                    yield replace(
                        place, operator=f"only {ast.unparse(one)}", start=span[0], end=span[1],
                        wrong=(self._written(one),),
                    )  # fmt: skip
        if "isinstance" in called(node) and isinstance(node.args[1], ast.Tuple):
            yield from self._elements("element", node.args[1].elts, around)
        arguments: list[ast.expr | ast.keyword] = sorted(
            [*node.args, *node.keywords], key=self._start
        )
        spans = [(self._start(one), self._end(one)) for one in arguments]
        dropped = [
            isinstance(one, ast.keyword) and one.arg is not None and one.arg not in PROMISES | HELP
            for one in arguments
        ]
        yield from self._without("keyword", spans, around, dropped)

    def _elements(self, operator: str, elements: list[ast.expr], around: Around) -> Iterator[Place]:
        spans = [(self._start(one), self._end(one)) for one in elements]
        yield from self._without(operator, spans, around)

    def _without(
        self,
        operator: str,
        spans: list[tuple[int, int]],
        around: Around,
        wanted: list[bool] | None = None,
    ) -> Iterator[Place]:
        """Leave out one of what stands between commas."""
        for i, (start, end) in enumerate(spans):
            if wanted is not None and not wanted[i]:
                continue
            if i + 1 < len(spans):
                end = spans[i + 1][0]
            elif i > 0:
                start = spans[i - 1][1]
            yield Place(operator, start, end, (b"",), around.lines, around.names)


def is_left_alone(node: ast.stmt) -> bool:
    """Whether a statement as a whole is among what no test should see."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) or bool(called(node.value) & (LOGS | DANGEROUS))
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    if isinstance(node, ast.AnnAssign) and "TypeAlias" in ast.unparse(node.annotation):
        return True
    if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript):
        return ast.unparse(node.value.value) in ALIASED
    return isinstance(node, ast.Import | ast.ImportFrom | ast.Assert | ast.Global | ast.Nonlocal)


def called(node: ast.expr) -> set[str]:
    """The names in what an expression calls: `log.info(..)` -> log, info."""
    if isinstance(node, ast.Await):
        node = node.value
    if not isinstance(node, ast.Call):
        return set()
    parts = ast.walk(node.func)
    names = {part.attr for part in parts if isinstance(part, ast.Attribute)}
    if isinstance(node.func, ast.Name):
        names.add(node.func.id)
    elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
        names.add(node.func.value.id)
    return names


def does_nothing(node: ast.expr) -> bool:
    """Whether an expression is a function for those who want to be told nothing."""
    return isinstance(node, ast.Lambda) and ast.unparse(node.body) == "None"


def defined(node: ast.stmt) -> Iterator[str]:
    """The names that a statement binds."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id


def is_text(node: ast.expr) -> bool:
    """Whether an expression is a text literal."""
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str | bytes)
    )
