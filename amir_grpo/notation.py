r"""Rewrite what people and models type, in Unicode, Markdown, plain text or decorated LaTeX, as plain LaTeX.

Pure functions on untrusted text; `amir_grpo.answers` compares their results.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

_CHARACTERS = dict.fromkeys("‐‑‒–—―−﹣－", "-") | dict.fromkeys("÷∕⁄", "/") | dict.fromkeys("°º˚", r"^\circ ")
_CHARACTERS |= {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∗": "*", "±": r"\pm ", "π": r"\pi ", "∞": r"\infty "}
_CHARACTERS |= {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∅": r"\emptyset "}
_CHARACTERS |= {"，": ", ", "、": ", ", "。": ".", "ℝ": r"\mathbb{R}", "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}"}
_UNICODE = str.maketrans(_CHARACTERS)
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+|[₀₁₂₃₄₅₆₇₈₉]+")
_VULGAR = re.compile("[¼-¾⅐-⅞]")

_SCALES = {"tenth": "0.1", "hundredth": "0.01", "thousandth": "0.001", "dozen": "12", "hundred": "100"}
_SCALES |= {"thousand": "1000", "lakh": "100000", "million": "1000000", "crore": "10000000"}
_SCALES |= {"billion": "1000000000", "trillion": "1000000000000"}
SCALE = rf"(?i:(?:{'|'.join(sorted(_SCALES, reverse=True))})s?\b)"
_TEXT = r"\\(?:text|textbf|textrm|textit|mathrm|mathbf|mbox|operatorname)\s*\{"
_DECORATION = r"\\(?:underline|uline|emph|textsf|texttt|mathsf|mathtt|mathnormal|boldsymbol|bm|ensuremath|hbox"
_DECORATION += r"|(?:textcolor|colorbox)\s*\{[^{}]*\})\s*"
_SWITCH = r"\\(?:(?:bf|it|rm|sf|tt|large|Large|huge|displaystyle|textstyle)(?![A-Za-z])|color\s*\{[^{}]*\})\s*"
_TH = "(?i:st|nd|rd|th)"
_GREEK = "alpha|beta|gamma|delta|epsilon|theta|lambda|mu|rho|sigma|tau|phi|omega|pi"
_FUNCTION = r"(arcsin|arccos|arctan|sin|cos|tan|cot|ln|log|exp)(?=\s*[(^_\\{\d]|\s+[A-Za-z](?![A-Za-z])|[ntxy]\b)"


def _scaled(match: re.Match[str]) -> str:
    """Rewrite 12 million as 12000000; after anything other than a plain number, the scale becomes a factor."""
    number = match["number"]
    value = Fraction(number if number[:1].isdigit() or number[:1] == "." else 1)
    for word in re.findall(SCALE, match["scale"]):
        value *= Fraction(_SCALES[word.lower().removesuffix("s")])
    return ("" if number else r"\cdot ") + _written(value) + (match["open"] or " ")


def _mixed(match: re.Match[str]) -> str:
    whole, above, below = map(int, match.groups())
    return _written(whole + Fraction(above, below)) if 0 < above < below else match.group()


def _written(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


# Patterns and their replacements, applied in this order.
_REWRITES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    # Markdown, quotation marks, and the words before an answer
    (r"```\w*\n?|`|[\"“”]", ""),
    (r"(?<![\w)}\]*])(\*{1,3}|_{1,3})(?=[^\s*_])(.+?)(?<=\S)\1(?![\w({\[*])", r"\2"),
    (r"^\s*(?i:minus|negative)\s+(?=\d)", "-"),
    (r"^\s*(?i:(?:so )?(?:the )?(?:final |correct )?answer(?: is|\s*:)+)\s*", ""),
    # delimiters, spaces, currencies, and commands that only change the look
    (r"(?<!\\)\\(?:[()\[\];:>\s]|q?quad(?![A-Za-z]))|(?<![~\\])~(?![~=])|\s+", " "),
    (r"\$\s*([,;])\s*\$", r"\1 "),
    (r"\\?\$|(?<![A-Za-z])Rs\b\.?\s*|[€£₹¥]", ""),
    (_SWITCH, ""),
    (rf"{_DECORATION}\{{([^{{}}]*)\}}", r"\1"),
    (rf"{_DECORATION}\{{([^{{}}]*)\}}", r"\1"),
    (rf"{_DECORATION}(?=\{{)", ""),
    # commas: in 1,234 and 11,\!111 they belong to the number; in brackets or before a space they separate items
    (r",\s*\\!\s*|\{,\}", ","),
    (r"(?<![A-Za-z\d])(?:\(|\[|\\\{)[-+\d.,\s]*\d\s*\\?[)\]}]", lambda match: match.group().replace(",", ", ")),
    (r"(?<![\d.])(?<!\d,)[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)", lambda match: match.group().replace(",", "")),
    (r"(?<=\d),(?=\d)", ", "),
    # ordinals, scale words, powers of ten, mixed numbers
    (rf"(?<=\d)\s*(?:\^?\s*{_TEXT}\s*{_TH}\s*\}}|\^\s*\{{\s*(?:{_TEXT}\s*{_TH}\s*\}}|{_TH})\s*\}})", ""),
    (rf"(?<=\d){_TH}(?![A-Za-z])", ""),
    (
        r"(?P<number>(?<![A-Za-z])(?i:an?|one)(?=\s)|(?<![\d.^_/{])(?:\d{1,40}(?:\.\d{1,40})?|\.\d{1,40})|(?<=\}))"
        rf"(?P<open>\s*{_TEXT})?\s*-?(?P<scale>(?:{SCALE}\s*)+)",
        _scaled,
    ),
    (r"(?<![\w.{}])(\d+\.?\d*|\.\d+)[eE](?:\+|(-))?0*(\d{1,3})(?![\w.])", r"\1\\times 10^{\2\3}"),
    (r"(?<![\w.^/}])(\d{1,40})\s+(\d{1,40})/(\d{1,40})(?![\w/.])", _mixed),
    # formulas in plain text
    (r"\*\*", "^"),
    (r"\^\s*\(([^()]*)\)|\^\s*(-\s*\w+)", r"^{\1\2}"),
    (r"(?:(?<![\\A-Za-z])sqrt|√)\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z](?![A-Za-z])))", r"\\sqrt{\1\2}"),
    (r"(?<![\\A-Za-z])sqrt(?=\s*\{)|√", r"\\sqrt"),
    (r"(?<![\\A-Za-z])[dt]?frac(?=\s*\{)|\\[dt]frac(?![A-Za-z])", r"\\frac"),
    (rf"(?<![\\A-Za-z])(?:({_GREEK})(?![A-Za-z])|{_FUNCTION})", r"\\\1\2 "),
    (r"(?<![\\A-Za-z])(?i:infinity|infty|inf)(?![A-Za-z])", r"\\infty "),
    (r"<=|\\leqslant|\\leq(?![A-Za-z])", r"\\le "),
    (r">=|\\geqslant|\\geq(?![A-Za-z])", r"\\ge "),
    (r"!=|\\neq(?![A-Za-z])", r"\\ne "),
    (r"\+/-", r"\\pm "),
    (r"(?<=[)\]])\s*U\s*(?=[(\[])", r"\\cup "),
)
_COMPILED = [(re.compile(pattern), replacement) for pattern, replacement in _REWRITES]


def notation(answer: str) -> str:
    """Rewrite Unicode, Markdown, plain text and decorated LaTeX as plain LaTeX without delimiters."""
    text = answer
    if not text.isascii():
        text = _VULGAR.sub(lambda match: r" \frac{{{}}}{{{}}}".format(*_compatible(match.group()).split("⁄")), text)
        text = _RAISED.sub(lambda m: f"{'_' if m.group() >= '₀' else '^'}{{{_compatible(m.group())}}}", text)
        text = _compatible(text.translate(_UNICODE)).translate(_UNICODE)
        text = "".join(c for c in text if unicodedata.category(c) != "Cf" and not "\ufe00" <= c <= "\ufe0f")
    for pattern, replacement in _COMPILED:
        text = pattern.sub(replacement, text)
    return text.strip()


def _compatible(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


_TYPESETTING = re.compile(r"\\left(?![a-zA-Z])|\\right(?![a-zA-Z])|\\[!,]")
_TEXT_COMMAND = re.compile(_TEXT + r"([^{}\\]*)\}")
_SPACES = re.compile(r"\s+")
_GROUP = re.compile(r"\{([^{}]*)\}")
# A space between two letters or digits separates words or numbers; any other space is typesetting.
_SPACE_BETWEEN_SIGNS = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")


def plain_text(answer: str) -> str:
    """Remove typesetting that does not change the meaning of an answer; answers with equal results are the same."""
    text = _TYPESETTING.sub(" ", notation(answer)).replace("\\%", "%")
    text = _TEXT_COMMAND.sub(r" \1 ", text)
    text = _SPACE_BETWEEN_SIGNS.sub("", _SPACES.sub(" ", text).strip())
    while match := _GROUP.fullmatch(text):
        text = match[1]
    return text.removesuffix(".") if not text.endswith("..") else text


# --- numbers ------------------------------------------------------------------------------------------------------

_PLAIN_NUMBER = re.compile(
    r"(?P<sign>[+-]?)(?P<whole>[1-9]\d{0,2}(?: \d{3})+|\d*)(?:\.(?P<decimals>\d*))?"
    r"(?:(?:[eE]|(?:\\times|\\cdot|\*) ?10\^)\{?(?P<exponent>[+-]?\d{1,3})\}?)?(?P<percent>%?)",
    re.ASCII,
)
_FRACTION = re.compile(
    r"(?P<sign>[+-]?)(?:(?P<mixed>\d+) ?(?=\\frac))?"
    r"(?:\\frac ?(?:\{(?P<a>-?\d+)\}|(?P<b>\d)) ?(?:\{(?P<c>\d+)\}|(?P<d>\d))|(?P<e>\d+)/(?P<f>\d+))",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """The exact value of a number, and whether it was written as an integer, a decimal, a fraction or a percentage."""

    value: Fraction
    form: Literal["integer", "decimal", "fraction"]
    percent: bool = False


def plain_number(text: str) -> PlainNumber | None:
    r"""Read an integer, a decimal, a fraction, a mixed number, or a number times a power of ten; None for other text.

    Args:
        text: An answer as `plain_text` returns it.
    """
    if len(text) > 400:
        return None
    match = _FRACTION.fullmatch(text)
    if match:
        above, below = int(match["a"] or match["b"] or match["e"]), int(match["c"] or match["d"] or match["f"])
        if below == 0 or (match["mixed"] and not 0 < above < below):
            return None
        value = Fraction(above, below) + int(match["mixed"] or 0)
        return PlainNumber(-value if match["sign"] == "-" else value, "fraction")
    match = _PLAIN_NUMBER.fullmatch(text)
    if not match or not (match["whole"] or match["decimals"]):
        return None
    whole, decimals, exponent = match["whole"].replace(" ", ""), match["decimals"] or "", int(match["exponent"] or 0)
    value = Fraction(f"{match['sign']}{whole}{decimals}e{exponent - len(decimals)}")
    return PlainNumber(value, "decimal" if decimals or exponent < 0 else "integer", bool(match["percent"]))
