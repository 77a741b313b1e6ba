"""A page of one file that needs nothing else: figures as inline SVG, pictures as data URIs. Knows nothing of what stands on it."""

import base64
import html
import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from captioning.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What figures are drawn with, and nothing else: in the page they become its own colours, of the light or of the dark scheme.
INK, FAINT, GROUND = "#010203", "#010204", "#010205"
SERIES = ("#020301", "#020302", "#020303", "#020304")
COLOURS = {INK: "var(--ink)", FAINT: "var(--line)", GROUND: "var(--ground)"} | {
    colour: f"var(--series-{number})" for number, colour in enumerate(SERIES, start=1)
}


def render(template: str, content: Mapping[str, Any]) -> str:
    """The page that a template of `templates/` makes of the content. All text in it is escaped, except what is Markup."""
    environment = Environment(
        loader=PackageLoader("captioning.analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (number, signed, percent, count, plain, plain_signed)}
    return environment.get_template(template).render(content)


def write(file: Path, page: str) -> None:
    """UserError where it cannot be written."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8", errors="replace")  # a file's name may hold bytes that are not UTF-8
    except OSError as error:
        raise UserError(f"--out {file}: cannot be written ({error.strerror})") from None


def svg(figure: "Figure", label: str) -> Markup:
    """The figure as inline SVG with text as text, in the page's colours. label: says in words what the figure shows."""
    import matplotlib

    drawn = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": label}  # the salt: equal figures get equal names, others other ones
    with matplotlib.rc_context(settings), warnings.catch_warnings(action="ignore"):  # of letters that only the browser's fonts have
        figure.savefig(drawn, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = drawn.getvalue()
    text = text[text.index("<svg") :]  # without the XML declaration and the document type, which names an address
    text = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)  # a style would be one of the whole page
    named = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r'\s+id="([^"]*)"', lambda match: match[0] if match[1] in named else "", text)  # figure_1 would stand there twice
    text = re.sub(r"font-family: [^;\"]*;?", "", text)  # the page's
    for colour, its in COLOURS.items():
        text = text.replace(colour, its)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size
    head = f'<svg class="chart" role="img" aria-label="{html.escape(label)}" viewBox="{size[0][9:-1]}" xmlns="http://www.w3.org/2000/svg">'
    return Markup(re.sub(r"<svg[^>]*>", lambda _: head, text, count=1).replace("xlink:href", "href").strip())


def data_uri(picture: Image.Image, longest: int = 360, quality: int = 72) -> str:
    """The picture inside the page, its longer side at most `longest` pixels: a JPEG, or a PNG where that is smaller, as of a drawing."""
    small = picture.convert("RGB")
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    jpeg, png = io.BytesIO(), io.BytesIO()
    small.save(jpeg, "JPEG", quality=quality, optimize=True, progressive=True)
    small.save(png, "PNG")
    kind, content = min(("jpeg", jpeg.getvalue()), ("png", png.getvalue()), key=lambda its: len(its[1]))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def number(value: float, places: int = 3) -> str:
    return "–" if value != value else f"{value:.{places}f}"


def signed(value: float, places: int = 3) -> str:
    """With its sign, and a minus as long as the plus."""
    return "–" if value != value else f"{value:+.{places}f}".replace("-", "−")


def percent(share: float) -> str:
    return "–" if share != share else f"{100 * share:.1f}%"


def plain(value: float) -> str:
    """A count as it is, a share or a mean with four places."""
    return count(value) if isinstance(value, int) else number(value, 4)


def plain_signed(value: float) -> str:
    return f"{value:+,}".replace("-", "−") if isinstance(value, int) else signed(value, 4)


def count(value: int) -> str:
    return f"{value:,}"
