"""LaTeX as text for a terminal, and docstrings without their markup."""

import functools
import re
import textwrap
from collections.abc import Callable
from typing import Any

from pylatexenc.latex2text import LatexNodes2Text, MacroTextSpec, get_default_latex_context_db
from pylatexenc.latexwalker import LatexWalker
from pylatexenc.latexwalker import get_default_latex_context_db as walker_context
from pylatexenc.macrospec import MacroSpec

INDENT = 4 * " "
DIGITS = "0123456789"
LOWERED = str.maketrans(DIGITS, "₀₁₂₃₄₅₆₇₈₉")
RAISED = str.maketrans(DIGITS, "⁰¹²³⁴⁵⁶⁷⁸⁹")


def formula_lines(latex: str, width: int = 96) -> list[str]:
    r"""The equations of a displayed formula as text, one a line, wrapped before operators.

    Example:
        >>> formula_lines(r"y = x \cdot \sigma(W_2 z), \quad z_i = \frac{a^\top b}{n + 1}")
        ['y = x · σ(W₂ z)', 'z_i = aᵀ b / (n + 1)']
    """
    lines = re.split(r",?\s*\\q?quad\s*", " ".join(latex.split()))
    return [part for line in lines for part in _wrapped(math(line), width)]


def _wrapped(line: str, width: int) -> list[str]:
    unbroken = re.sub(r" (?![-+·∑⊙])|(?<=[-+·⊙]) ", "\N{NO-BREAK SPACE}", line)
    parts = textwrap.wrap(
        unbroken, width, subsequent_indent=INDENT, break_on_hyphens=False, break_long_words=False
    )
    return [part.replace("\N{NO-BREAK SPACE}", " ") for part in parts]


def math(latex: str) -> str:
    """A formula on one line."""
    latex = re.sub(r"\\sum\s*_", r"\\sumover_", latex)
    latex = re.sub(r"([_^])\s*(\\[a-zA-Z]+|[^{\s])", r"\1{\2}", latex)  # so spaces after it stay
    latex = (
        latex.replace(r"\sumover_", r"\sumover").replace("_", r"\lowered").replace("^", r"\raised")
    )
    nodes, *_ = LatexWalker(f"${latex}$", latex_context=_walker()).get_latex_nodes()
    text = _converter().nodelist_to_text(nodes)
    text = re.sub(r"\s*([·∈∪⊙∗×≤≥≈])\s*", r" \1 ", text)
    return " ".join(text.split()).replace(" ,", ",").replace("( ", "(").replace("[ ", "[")


def plain(text: str) -> str:
    """Prose without roles and literal marks, on one line.

    Example:
        >>> plain("See :class:`~foveate.mechanisms.base.Gate`: ``x`` times :math:`1 + a_0`.")
        'See Gate: x times 1 + a₀.'
    """
    return _without_roles(text, code=r"\1", formula=math)


def markdown(text: str) -> str:
    """Prose as Markdown; formulas are code, where no character is markup."""
    return _without_roles(text, code=r"`\1`", formula=lambda latex: f"`{math(latex)}`")


def _without_roles(text: str, *, code: str, formula: Callable[[str], str]) -> str:
    text = " ".join(text.split())
    text = re.sub(r":math:`([^`]*)`", lambda match: formula(match[1]), text)
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", code, text)
    return re.sub(r"``(.*?)``", code, text)


def _lowered(node: Any, l2tobj: Any) -> str:
    text = _argument(node, 0, l2tobj)
    if set(text) <= set(DIGITS):
        return text.translate(LOWERED)
    return f"_{text}" if text.isalnum() else f"_{{{text}}}"


def _sum(node: Any, l2tobj: Any) -> str:
    return f" ∑{_lowered(node, l2tobj)} "


def _raised(node: Any, l2tobj: Any) -> str:
    text = _argument(node, 0, l2tobj)
    if set(text) <= set(DIGITS):
        return text.translate(RAISED)
    return "ᵀ" if text == "⊤" else f"^{text}" if text.isalnum() else f"^({text})"


def _fraction(node: Any, l2tobj: Any) -> str:
    above, below = _argument(node, 0, l2tobj), _argument(node, 1, l2tobj)
    below = f"({below})" if " " in _outside_brackets(below) else below
    above = f"({above})" if re.search(r" [-+] ", _outside_brackets(above)) else above
    return f" {above} / {below} "


def _outside_brackets(text: str) -> str:
    while text != (inner := re.sub(r"\([^()]*\)", "", text)):
        text = inner
    return text


def _argument(node: Any, index: int, l2tobj: Any) -> str:
    text = l2tobj.nodelist_to_text([node.nodeargd.argnlist[index]])
    return re.sub(r"\s*([∈∪·])\s*", r" \1 ", text).strip()


@functools.cache
def _walker() -> Any:
    context = walker_context()
    macros = [MacroSpec(name, "{") for name in ("lowered", "raised", "sumover")]
    context.add_context_category("foveate", macros=macros, prepend=True)
    return context


@functools.cache
def _converter() -> LatexNodes2Text:
    context = get_default_latex_context_db()
    macros = [
        MacroTextSpec("lowered", simplify_repl=_lowered),
        MacroTextSpec("sumover", simplify_repl=_sum),
        MacroTextSpec("raised", simplify_repl=_raised),
        MacroTextSpec("frac", simplify_repl=_fraction),
        MacroTextSpec("ell", simplify_repl="ℓ"),
    ]
    context.add_context_category("foveate", macros=macros, prepend=True)
    return LatexNodes2Text(latex_context=context, math_mode="text", strict_latex_spaces=True)
