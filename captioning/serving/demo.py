"""The demo: a page where one uploads a picture, presses Submit and reads the caption beside it. Knows no run directory."""

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from torch import Tensor

from captioning.analysis.overlay import lit
from captioning.errors import UserError
from captioning.serving.captioner import Asked, Captioner
from captioning.serving.gate import MAX_UPLOAD, Gate

if TYPE_CHECKING:
    import gradio

MAX_BEAM, MAX_CAPTIONS = 10, 5
WAITING = 20  # pictures in the queue; who comes after is asked to try again
KEPT = 3600  # seconds that an upload lies on the disk, at most 10 minutes more
TILE = 224  # pixels
CSS = """
#picture img { width: 100%; height: 100%; object-fit: contain; }
#looked .grid-wrap, #examples .grid-wrap { padding-top: 2.2rem; min-height: 0 !important; max-height: none !important; }
#looked .grid-container, #examples .grid-container { grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)) !important; }
"""


class Model(NamedTuple):
    captioner: Captioner
    about: Mapping[str, Any]  # what is said of it: see captioning/build/serving.py


class Answer(NamedTuple):
    """What stands beside the picture. `problem` is a sentence, and then there is nothing else."""

    caption: str = ""
    others: str = ""  # the further captions, one a line
    tiles: Sequence[tuple[Image.Image, str]] = ()  # one a word: what it looked at is bright
    problem: str = ""


def answer(models: Mapping[str, Model], file: Path | None, name: Any, beam_size: Any, captions: Any) -> Answer:
    """Of one picture. What a visitor gives is checked here: the page is not all that can ask."""
    if file is None:
        return Answer(problem="Upload a picture first.")
    if not isinstance(name, str) or name not in models:
        return Answer(problem=f"There is no such model; there are {', '.join(models)}.")
    for what, value, most in (("Beam size", beam_size, MAX_BEAM), ("Captions", captions, MAX_CAPTIONS)):
        if value not in range(1, most + 1):
            return Answer(problem=f"{what} must be a whole number from 1 to {most}.")
    captioner = models[name].captioner
    asked = Asked(int(beam_size), candidates=min(int(captions), int(beam_size)), looks=captioner.attends)
    try:
        image = captioner.read(file.read_bytes())  # bytes: a sentence about them does not name the folder
        best, *others = captioner([captioner.prepare(image)], asked)[0]
    except FileNotFoundError:
        return Answer(problem="The picture is no longer kept here: upload it again.")
    except UserError as error:
        return Answer(problem=str(error)[:1].upper() + str(error)[1:])
    lines = "\n".join(f"{other.description}  (log p {other.log_p:.2f})" for other in others)
    picture = captioner.transform.picture(image).resize((TILE, TILE), Image.Resampling.BICUBIC)
    return Answer(best.description, lines, tiles(picture, best.caption.split(), best.attention))


def tiles(picture: Image.Image, words: Sequence[str], attention: Tensor | None) -> list[tuple[Image.Image, str]]:
    """One a word; none where the decoder does not attend, or over no square of cells."""
    if attention is None or round(attention.shape[1] ** 0.5) ** 2 != attention.shape[1]:
        return []
    return [(lit(picture, row), word) for word, row in zip(words, attention)]


def facts(model: Model) -> str:
    its = model.about
    attends = "" if model.captioner.attends else " Its decoder does not attend: where a word looked cannot be shown."
    return (
        f"Encoder {its['encoder']}, decoder {its['decoder']}, {its['words']:,} words, {its['parameters']:,} parameters, "
        f"pictures of {its['image_size']} px.{attends}"
    )


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """For what is uploaded and all that Gradio writes, and for the examples; gone at the end. Gradio must be imported inside this block:
    the folder is named, and telemetry off, before that."""
    with tempfile.TemporaryDirectory(prefix="captioning-demo-", ignore_cleanup_errors=True) as folder:
        uploads, examples = (Path(folder).resolve() / name for name in ("uploads", "examples"))
        uploads.mkdir()
        examples.mkdir()
        os.environ |= {
            "GRADIO_TEMP_DIR": str(uploads),
            "GRADIO_EXAMPLES_CACHE": str(uploads),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "1",
        }
        yield uploads, examples


def page(models: Mapping[str, Model], examples: Sequence[Path], title: str) -> "gradio.Blocks":
    """Inside `folders`. examples: in its second folder."""
    import gradio

    plain: Any = {"interactive": False, "allow_preview": False, "buttons": [], "height": "auto", "object_fit": "contain"}

    def submit(upload: Any, name: Any, beam_size: Any, captions: Any) -> dict[Any, Any]:
        # unprocessed: Gradio would open the file with whichever of Pillow's decoders wants it
        its = answer(models, Path(upload["path"]) if isinstance(upload, dict) and upload.get("path") else None, name, beam_size, captions)
        return {
            caption: gradio.Textbox(value=its.caption, visible=not its.problem),
            others: gradio.Textbox(value=its.others, visible=bool(its.others)),
            problem: gradio.Textbox(value=its.problem, visible=bool(its.problem)),
            gallery: gradio.Gallery(value=list(its.tiles), visible=bool(its.tiles)),
        }

    def choose(event: gradio.SelectData) -> str:
        return str(examples[event.index])

    first = next(iter(models))
    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(600, KEPT)) as blocks:
        gradio.Markdown(f"# {title}\nUpload a picture and press Submit. It is read where this page comes from, and sent nowhere else.")
        with gradio.Row():
            with gradio.Column():
                picture = gradio.Image(label="Picture", type="filepath", height=360, buttons=[], elem_id="picture")
                name = gradio.Dropdown(list(models), value=first, label="Model", visible=len(models) > 1)
                with gradio.Row():
                    beam_size = gradio.Slider(1, MAX_BEAM, value=3, step=1, label="Beam size")
                    captions = gradio.Slider(1, MAX_CAPTIONS, value=1, step=1, label="Captions")
                button = gradio.Button("Submit", variant="primary")
            with gradio.Column():
                caption = gradio.Textbox(label="Caption", lines=2, interactive=False, elem_id="caption")
                others = gradio.Textbox(label="Further captions", interactive=False, visible=False)
                problem = gradio.Textbox(label="That did not work", interactive=False, visible=False, elem_id="problem")
                gallery = gradio.Gallery(label="Where each word looked", columns=4, visible=False, elem_id="looked", **plain)
                said = gradio.Markdown(facts(models[first]))
        if examples:
            shown = gradio.Gallery([str(file) for file in examples], label="Examples", columns=6, elem_id="examples", **plain)
            shown.select(choose, None, [picture], api_visibility="private")
        button.click(
            submit,
            [picture, name, beam_size, captions],
            [caption, others, problem, gallery],
            api_name="caption",
            preprocess=False,
            concurrency_limit=1,
        )
        name.change(lambda chosen: facts(models[chosen]), [name], [said], api_visibility="private")
    blocks.space_id = None  # in a Space, the page would ask huggingface.co for a header, and Google for fonts
    return blocks.queue(max_size=WAITING, default_concurrency_limit=1)


def theme() -> Any:
    """Gradio's, with fonts of the machine, and colours dark enough to be read on white."""
    from gradio.themes import Default

    fonts = ["ui-sans-serif", "system-ui", "sans-serif"]
    its = Default(primary_hue="blue", font=fonts, font_mono=["ui-monospace", "monospace"])
    return its.set(body_text_color_subdued="*neutral_600", block_info_text_color="*neutral_600", block_label_text_color="*neutral_600")


def fits(blocks: "gradio.Blocks", question: Any) -> bool:
    """Gradio answers any other with a traceback in the log, and the visitor's values in it."""
    if not isinstance(question, dict) or not isinstance(question.get("fn_index"), int) or not isinstance(question.get("data"), list):
        return False
    function = blocks.fns.get(question["fn_index"])
    if function is None or len(function.inputs) > len(question["data"]):
        return False
    for component, value in zip(function.inputs, question["data"]):
        model = getattr(component, "data_model", None)
        try:
            if model is not None and value is not None:
                model.model_validate(value)
        except ValueError:
            return False
    return True


@contextmanager
def running(models: Mapping[str, Model], examples: Sequence[Path], title: str, *, host: str, port: int) -> Iterator[str]:
    """The page is served while this block lasts. -> Its address. UserError where the port is taken."""
    check_free(host, port)
    with folders() as (uploads, shown):
        from starlette.middleware import Middleware

        copies = [Path(shutil.copy(file, shown / f"{number}{file.suffix}")) for number, file in enumerate(examples)]
        blocks = page(models, copies, title)
        _, address, _ = blocks.launch(
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            allowed_paths=[str(shown)],
            app_kwargs={"middleware": [Middleware(Gate, folder=uploads, fits=partial(fits, blocks))]},  # type: ignore[arg-type]
            theme=theme(),
            css=CSS,
        )
        try:
            yield address
        finally:
            blocks.close(verbose=False)


def check_free(host: str, port: int) -> None:
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: one that has ended is no hindrance
            listening.bind(where)
    except OSError as error:
        raise UserError(f"--host {host} --port {port}: cannot be listened to there ({error.strerror})") from None


def serve(models: Mapping[str, Model], examples: Sequence[Path], title: str, *, host: str, port: int) -> None:
    """Until the process is told to end."""
    with running(models, examples, title, host=host, port=port) as address:
        print(f"{title}: {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()
