"""The page in a browser, through the real command: each tab as a person uses it, and what a person must not get."""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tcae_diffusers.data.images.decoding import load_rgb_image
from tcae_diffusers.evaluation.app.generation import Sampling, draw_seeds, guider_names, scheduler_names
from tcae_diffusers.evaluation.app.reconstruction import ShownAutoencoder
from tcae_diffusers.evaluation.pictures.drawing import load_latent_pipeline
from tcae_diffusers.models.adapters import load_autoencoder

from .conftest import TINY_AUTOENCODER, draw_images, evaluate

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
pytest.importorskip("gradio", reason="gradio, of the extra app, is not installed")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright, which drives the browser, is not installed"
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium or chrome on this machine")

SECONDS = 30
# So many that only cancelling ends them in the time of a test.
ENDLESS = 1_000_000


@dataclass
class Server:
    """A page that is being served, and what it was started with."""

    address: str
    port: int
    log: Path
    folder: Path
    pipeline: Path

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=SECONDS) as answer:
            return answer.read()


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def save_diffusion_pipeline(save_pipeline) -> Path:
    from diffusers import DDIMScheduler

    return save_pipeline(["stars", "crosses", "waves"], scheduler=DDIMScheduler(clip_sample=False))


@pytest.fixture(scope="module")
def server(tmp_path_factory, save_pipeline, image_folder):
    from tcae_diffusers import AutoencoderTC

    folder = tmp_path_factory.mktemp("app")
    for seed, name in enumerate(("first", "second", "third", "fourth")):
        torch.manual_seed(seed)
        AutoencoderTC(**TINY_AUTOENCODER).save_pretrained(folder / name)
    (folder / "secret.html").write_text("<p>top secret</p>")
    arguments = ["--autoencoder", folder / "first", "--data", image_folder, "--extractor", "none", "--device", "cpu"]
    assert evaluate("reconstruction", *arguments, "--output", folder / "results" / "first") == 0
    (folder / "results" / "written.html").write_text("<h1>A report that was written</h1>")

    pipeline, port = save_pipeline(["circles", "squares"]), free_port()
    drawing = load_latent_pipeline(pipeline, "cpu", torch.float32)
    # Weights that are not zero, so that classes, steps and guidance matter.
    for parameter in drawing.transformer.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(4)))
    drawing.transformer.save_pretrained(pipeline / "transformer")
    command = [sys.executable, "-m", "tcae_diffusers.evaluation.app", "--port", port, "--device", "cpu"]
    command += ["--autoencoder", *(folder / name for name in ("first", "second", "third", "fourth"))]
    command += ["--pipeline", f"drawing={pipeline}", f"diffusion={save_diffusion_pipeline(save_pipeline)}"]
    command += ["--results", folder / "results", "--images", image_folder]
    command += ["--max_steps", ENDLESS, "--max_side", 128]
    log = folder / "log.txt"
    uploads = folder / "temporary"
    uploads.mkdir()
    with log.open("w") as output:
        process = subprocess.Popen(
            list(map(str, command)),
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(uploads)},
        )
    try:
        for _ in range(4 * SECONDS):
            if "until Ctrl-C" in log.read_text() or process.poll() is not None:
                break
            time.sleep(1)
        assert process.poll() is None, log.read_text()
        yield Server(f"http://127.0.0.1:{port}", port, log, folder, pipeline)
        assert process.poll() is None, log.read_text()
        assert list(uploads.glob("tcae-app-*/*"))
    finally:
        process.terminate()
        process.wait(SECONDS)
    assert not list(uploads.glob("tcae-app-*")), "uploads outlive the command"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def new_user(browser, server):
    """
    `new_user(tab)` opens the page as one more visitor. The test fails if the page asks another server for anything, or
    if the server does not know what went wrong.
    """
    contexts, elsewhere, said_before = [], [], len(server.log.read_text())

    def open_page(tab):
        context = browser.new_context(viewport={"width": 1400, "height": 1000})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(SECONDS * 1000)
        own = (server.address, "data:", "blob:", "about:")
        page.on("request", lambda request: elsewhere.append(request.url) if not request.url.startswith(own) else None)
        page.goto(server.address)
        page.get_by_role("tab", name=tab).click()
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert elsewhere == []
    assert "Traceback" not in server.log.read_text()[said_before:]


def fill(page, name: str, value) -> None:
    """Types into a number field."""
    field = page.locator(f"#{name} input").first
    field.fill(str(value))
    field.blur()


def sentence(page) -> str:
    """What the page says is wrong; it is closed then."""
    toast = page.locator(".toast-body").first
    toast.wait_for()
    text = toast.inner_text()
    page.locator(".toast-close").first.click()
    toast.wait_for(state="detached")
    return text.replace("\n", " ")


def pictures(server, page, name: str) -> list[np.ndarray]:
    """The pictures that an element shows, as the server sends them."""
    sources = page.locator(f"#{name} img").evaluate_all("images => images.map(image => image.src)")
    assert all(source.startswith(server.address) for source in sources)
    return [np.asarray(Image.open(io.BytesIO(server.get(each.removeprefix(server.address))))) for each in sources]


def seeds_of(page) -> list[str]:
    return re.findall(r"seed (\d+)", " ".join(page.locator("#gallery .caption-label").all_inner_texts()))


def upload(page, path: Path) -> None:
    page.locator("#image input[type=file]").first.set_input_files(path)


# Reconstruct


def test_an_image_is_picked_and_reconstructed_by_three_autoencoders(new_user, server):
    page = new_user("Reconstruct")
    page.locator("#examples .thumbnail-item").nth(2).click()
    page.locator("#figures-2 table").wait_for()
    said = [page.locator(f"#figures-{index}").inner_text() for index in range(3)]
    assert [text.split()[0] for text in said] == ["first", "second", "third"]
    assert all(re.search(r"PSNR\s+\d+\.\d\d dB\s+SSIM\s+-?0\.\d{4}\s+Latent\s+4 × 4 × 4", text) for text in said)
    assert "PSNR without noise" not in said[0]
    for index in range(3):
        assert page.locator(f"#slider-{index} img").count() == 2
        assert page.locator(f"#error-map-{index} img").count() == 1
        assert page.locator(f"#components-{index} img").count() == 1
        assert "latent" in page.locator(f"#component-names-{index}").inner_text()
    # The pixels are those of the model.
    original, output = pictures(server, page, "slider-1")
    image = Image.fromarray(original[::16, ::16, :3])
    expected = ShownAutoencoder(load_autoencoder(server.folder / "second")).reconstruct(image, 32)
    assert np.array_equal(output[::16, ::16, :3], expected.output)
    assert f"{expected.psnr:.2f} dB" in said[1]


def test_noise_on_the_latent_is_moved_with_the_slider(new_user, server):
    page = new_user("Reconstruct")
    page.locator("#examples .thumbnail-item").first.click()
    page.locator("#figures-0 table").wait_for()
    clean = pictures(server, page, "slider-0")[1]
    slider = page.locator("#noise input[type=range]")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    page.mouse.up()
    page.get_by_text("PSNR without noise").first.wait_for()
    noisy = pictures(server, page, "slider-0")[1]
    assert noisy.shape == clean.shape and not np.array_equal(noisy, clean)


def test_an_image_is_uploaded_and_reconstructed_at_another_size(new_user, server, tmp_path):
    """A photograph that lies on its side and has more pixels than wanted."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(draw_images(5, 1, 96)[0, :64]).save(tmp_path / "photo.jpg", exif=exif)
    page = new_user("Reconstruct")
    fill(page, "side", 64)
    upload(page, tmp_path / "photo.jpg")
    page.get_by_text("4 × 8 × 8").first.wait_for()
    original = pictures(server, page, "slider-0")[0][::8, ::8, :3]
    image = load_rgb_image(tmp_path / "photo.jpg")
    expected = ShownAutoencoder(load_autoencoder(server.folder / "first")).reconstruct(image, 64)
    assert image.size == (64, 96) and np.array_equal(original, expected.original)


def test_wrong_input_of_a_reconstruction_is_answered_by_a_sentence(new_user, tmp_path):
    page = new_user("Reconstruct")
    page.locator("#reconstruct").click()
    assert "There is no image; upload one, or pick one of the examples" in sentence(page)
    page.locator("#examples .thumbnail-item").first.click()
    page.locator("#figures-0 table").wait_for()
    for side, expected in (
        (30, "Side 30 is not a multiple of 8"),
        (136, "The side must be a whole number of pixels from 1 to 128"),
        (-8, "The side must be"),
        (8, "SSIM needs images of at least 11 pixels"),
        ("", "The side must be"),
    ):
        fill(page, "side", side)
        page.locator("#reconstruct").click()
        assert expected in sentence(page), side
    (tmp_path / "fake.png").write_text("no image at all")
    fill(page, "side", 32)
    page.locator("#image button[aria-label='Remove Image']").first.click()
    upload(page, tmp_path / "fake.png")
    assert "Cannot read image fake.png: it is not an image" in sentence(page)
    # Nothing is broken by it.
    page.locator("#examples .thumbnail-item").nth(1).click()
    page.locator("#figures-0 table").wait_for()


# Generate


def expected_images(server, labels, seeds, steps, guider=None, scheduler=None):
    pipeline = load_latent_pipeline(server.pipeline, "cpu", torch.float32)
    guider = guider or guider_names(pipeline)[0]
    sampling = Sampling(scheduler or scheduler_names(pipeline)[0], steps, guider, 3.0, 32, lambda part: None)
    return draw_seeds(pipeline, labels, seeds, sampling)


def assert_shows(server, page, expected) -> None:
    shown = pictures(server, page, "gallery")
    assert len(shown) == len(expected)
    for picture, image in zip(shown, expected, strict=True):
        assert np.abs(picture[::4, ::4, :3].astype(int) - image).max() <= 1


def test_images_of_two_classes_are_generated_and_a_seed_is_copied(new_user, server):
    page = new_user("Generate")
    page.locator("#classes input").click()
    page.get_by_role("option", name="squares").click()
    fill(page, "count", 2)
    fill(page, "seed", 17)
    fill(page, "steps", 3)
    page.locator("#generate").click()
    page.get_by_text("4 images.").wait_for()
    captions = page.locator("#gallery .caption-label").all_inner_texts()
    assert captions == ["seed 17 · circles", "seed 18 · circles", "seed 17 · squares", "seed 18 · squares"]
    assert_shows(server, page, expected_images(server, [0, 0, 1, 1], [17, 18, 17, 18], 3))
    page.locator("#gallery .thumbnail-item").nth(1).click()
    playwright.expect(page.locator("#selected textarea, #selected input").first).to_have_value("18")


def test_images_between_two_seeds(new_user, server):
    page = new_user("Generate")
    fill(page, "steps", 2)
    fill(page, "seed", 3)
    page.get_by_text("Between two seeds").click()
    fill(page, "last-seed", 8)
    fill(page, "frames", 3)
    page.locator("#interpolate").click()
    page.get_by_text("3 images.").wait_for()
    captions = page.locator("#gallery .caption-label").all_inner_texts()
    assert captions == ["seed 3", "50% of the way", "seed 8"]
    first, _, last = pictures(server, page, "gallery")
    ends = expected_images(server, [0, 0], [3, 8], 2)
    for picture, image in ((first, ends[0]), (last, ends[1])):
        assert np.abs(picture[::4, ::4, :3].astype(int) - image).max() <= 1


def test_another_scheduler_and_guider_are_chosen(new_user, server):
    page = new_user("Generate")
    fill(page, "steps", 4)
    page.locator("#scheduler input").click()
    page.get_by_role("option", name="FlowMatchHeunDiscreteScheduler").click()
    page.locator("#guider input").click()
    page.get_by_role("option", name="AdaptiveProjectedGuidance").click()
    page.locator("#generate").click()
    page.get_by_text("4 images.").wait_for()
    chosen = {"guider": "AdaptiveProjectedGuidance", "scheduler": "FlowMatchHeunDiscreteScheduler"}
    assert_shows(server, page, expected_images(server, [0] * 4, range(4), 4, **chosen))


def test_another_pipeline_brings_its_classes_and_schedulers(new_user, server):
    page = new_user("Generate")
    page.locator("#pipeline input").click()
    page.get_by_role("option", name="diffusion").click()
    playwright.expect(page.locator("#scheduler input")).to_have_value("DDIMScheduler")
    page.locator("#classes input").click()
    page.get_by_role("option", name="waves").click()
    fill(page, "count", 1)
    fill(page, "steps", 2)
    page.locator("#generate").click()
    page.get_by_text("2 images.").wait_for()
    assert page.locator("#gallery .caption-label").all_inner_texts() == ["seed 0 · stars", "seed 0 · waves"]


def test_wrong_input_of_a_generation_is_answered_by_a_sentence(new_user):
    page = new_user("Generate")
    wrong = [
        ("count", 0, "Images of each class: 0 given, a whole number from 1 to 64 expected"),
        ("count", 65, "from 1 to 64"),
        ("seed", -1, "First seed: -1 given, a whole number from 0 to"),
        ("steps", "", "Denoising steps: nothing given"),
        ("scale", 0.5, "Guidance scale: 0.5 given, a number from 1 (no guidance) to 100 expected"),
    ]
    for name, value, expected in wrong:
        before = page.locator(f"#{name} input").first.input_value()
        fill(page, name, value)
        page.locator("#generate").click()
        assert expected in sentence(page), (name, value)
        fill(page, name, before)
    page.locator("#classes button[title='Clear'], #classes .token-remove").last.click()
    page.locator("#generate").click()
    assert "Choose at least one class" in sentence(page)


def test_a_generation_is_cancelled_and_shows_its_progress(new_user):
    page = new_user("Generate")
    page.locator("#cancel").click()
    page.get_by_text("Nothing of yours is running.").wait_for()
    fill(page, "steps", ENDLESS)
    page.locator("#generate").click()
    page.locator("#gallery .progress-bar").first.wait_for()
    page.locator("#cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    fill(page, "steps", 2)
    page.locator("#generate").click()
    page.get_by_text("4 images.").wait_for()


def test_two_users_at_once_get_what_each_asked_for(new_user, server):
    users = [(new_user("Generate"), seed, count) for seed, count in ((100, 1), (200, 2), (300, 3))]
    for page, seed, count in users:
        fill(page, "seed", seed)
        fill(page, "count", count)
        fill(page, "steps", 40)
    for page, _, _ in users:
        page.locator("#generate").click()
    for page, seed, count in users:
        page.get_by_text(f"{count} images.").wait_for()
        seeds = range(seed, seed + count)
        assert seeds_of(page) == [str(each) for each in seeds]
        assert_shows(server, page, expected_images(server, [0] * count, seeds, 40))


def test_one_user_cancels_and_the_other_who_waits_does_not_notice(new_user):
    first, second = new_user("Generate"), new_user("Generate")
    fill(first, "steps", ENDLESS)
    first.locator("#generate").click()
    first.locator("#gallery .progress-bar").first.wait_for()
    fill(second, "steps", 2)
    fill(second, "seed", 50)
    second.locator("#generate").click()
    # The request of the first is not the second's to cancel.
    second.locator("#cancel").click()
    second.get_by_text("Nothing of yours is running.").wait_for()
    first.locator("#cancel").click()
    first.get_by_text("Cancelled.").wait_for()
    second.get_by_text("4 images.").wait_for()
    assert seeds_of(second) == ["50", "51", "52", "53"]


def test_who_leaves_stops_what_was_running(new_user):
    page = new_user("Generate")
    fill(page, "steps", ENDLESS)
    page.locator("#generate").click()
    page.locator("#gallery .progress-bar").first.wait_for()
    page.close()
    other = new_user("Generate")
    fill(other, "steps", 2)
    other.locator("#generate").click()
    other.get_by_text("4 images.").wait_for()


# Results


def test_reports_are_read(new_user, server):
    page = new_user("Results")
    frame = page.frame_locator("iframe.report")
    frame.get_by_text("A report that was written").wait_for()
    page.locator("#report input").click()
    page.get_by_role("option", name="all results in one page").click()
    frame.get_by_text("Reconstruction", exact=True).first.wait_for()
    assert frame.locator("img").count() > 0
    (server.folder / "results" / "later.html").write_text("<h1>A later report</h1>")
    page.locator("#refresh").click()
    later = page.get_by_role("option", name="later.html")
    for _ in range(SECONDS):
        page.locator("#report input").click()
        page.wait_for_timeout(500)
        if later.is_visible():
            break
        page.keyboard.press("Escape")
    later.click()
    frame.get_by_text("A later report").wait_for()


# What is not served


def paths_outside(server) -> list[Path]:
    root = Path(__file__).parents[2]
    weights = server.folder / "first" / "diffusion_pytorch_model.safetensors"
    inside_results = server.folder / "results" / "written.html"
    picture = root / "docs" / "images" / "demo.png"
    paths = [Path("/etc/passwd"), root / "setup.cfg", picture, weights, inside_results, server.folder / "secret.html"]
    assert all(path.is_file() for path in paths)
    return paths


def test_files_are_not_served(new_user, server):
    page = new_user("Reconstruct")
    page.locator("#examples img").first.wait_for()
    source = page.locator("#examples img").first.get_attribute("src")
    # What the page shows is served by the route that is tried below.
    assert "/gradio_api/file=" in source and server.get(source.removeprefix(server.address))
    for path in [*paths_outside(server), Path("setup.cfg")]:
        for route in (f"/gradio_api/file={path}", f"/file={path}", f"/gradio_api/file=//{path}"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                server.get(route)
            assert refused.value.code in (403, 404), route


def answer_to(server, elem_id: str, data: list) -> dict:
    """What the server answers to a forged request with inputs of an event that takes this element first."""
    config = json.loads(server.get("/config"))
    (component,) = (each["id"] for each in config["components"] if each["props"].get("elem_id") == elem_id)
    event = next(each for each in config["dependencies"] if each["inputs"][:1] == [component])
    body = {"data": data, "fn_index": event["id"], "session_hash": "forged"}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(
        f"{server.address}/gradio_api/queue/join", json.dumps(body).encode(), headers, method="POST"
    )
    urllib.request.urlopen(request, timeout=SECONDS).close()
    with urllib.request.urlopen(
        f"{server.address}/gradio_api/queue/data?session_hash=forged", timeout=SECONDS
    ) as lines:
        for line in lines:
            message = json.loads(line.decode().removeprefix("data: ")) if line.startswith(b"data: ") else {}
            if message.get("msg") == "process_completed":
                return message
    raise AssertionError("no answer")


def test_a_forged_upload_reads_no_file(server):
    for path in paths_outside(server):
        image = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        answer = answer_to(server, "image", [image, ["first"], 32, 0])
        assert answer["success"] is False
        assert "secret" not in json.dumps(answer)


def test_a_forged_report_reads_no_file(server):
    for name in ("../secret.html", str(server.folder / "secret.html")):
        answer = answer_to(server, "report", [name])
        assert answer["success"] is False and "secret</p>" not in json.dumps(answer)
    assert "A report that was written" in json.dumps(answer_to(server, "report", ["written.html"]))


def test_it_listens_on_loopback_only(server):
    """127.0.0.2 is this machine too, and is answered by a server that listens on all addresses."""
    socket.create_connection(("127.0.0.1", server.port), timeout=SECONDS).close()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)


def test_a_port_in_use_is_said_in_one_sentence(server):
    command = [sys.executable, "-m", "tcae_diffusers.evaluation.app", "--results", str(server.folder)]
    done = subprocess.run([*command, "--port", str(server.port)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"cannot listen on port {server.port} of 127.0.0.1" in done.stderr.splitlines()[-1]
