"""The page in headless Chromium: a file and a microphone, on a desktop and on a phone, without any other host."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import soundfile
from selenium import webdriver

from hf_distil_whisper.cli.demo import load_app
from hf_distil_whisper.inference.transcribe import transcribe
from hf_distil_whisper.student import create_student
from talking_models import talking_whisper
from toy_models import toy_audio, toy_processor

pytestmark = pytest.mark.slow

app = load_app()
TEACHER, STUDENT, ASSISTED = app.TEACHER, app.STUDENT, app.ASSISTED
DESKTOP, PHONE = (1280, 800), (390, 844)
ODD_NAME = "${1 + 1} {{value}} <b>student</b>"
DISABLED = "gpu quic background-networking component-update sync".split()
FAKE = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
FLAGS = ["--headless", "--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in DISABLED), *FAKE]


@pytest.fixture(scope="module")
def models() -> tuple:
    """A toy teacher, a student of it that was never trained, and their processor."""
    teacher = talking_whisper()
    return teacher, create_student(teacher, decoder_layers=2).eval(), toy_processor()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording as a visitor has it."""
    file = tmp_path_factory.mktemp("upload") / "recording.wav"
    soundfile.write(file, toy_audio(3), 16_000)
    return file


@pytest.fixture(scope="module")
def address(models: tuple) -> Iterator[str]:
    """Of the running page, on a free port of this machine."""
    teacher, student, processor = models
    page = app.build_demo(student, teacher, processor, names=(ODD_NAME, "teacher"))
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, share=False, run_history=False, footer_links=[])
    yield address
    page.close()


@pytest.fixture
def open_page(address: str, recording: Path, tmp_path: Path) -> Iterator[Callable]:
    """Opens the page in a window of a size, or of a phone's."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.fail("this test drives a browser that is not installed: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS, f"--use-file-for-fake-audio-capture={recording}", f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))

    def open_in(size: tuple[int, int]) -> Browser:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(address)
        return Browser(browser)

    yield open_in
    browser.quit()


class Browser:
    """What a visitor does and sees."""

    def __init__(self, driver: object):
        self.driver = driver
        self.one("#transcribe")

    def some(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def one(self, selector: str, seconds: float = 60.0) -> object:
        end = time.monotonic() + seconds
        while not self.some(selector):
            assert time.monotonic() < end, f"no {selector} on the page after {seconds:.0f} s"
            time.sleep(0.1)
        return self.some(selector)[0]

    def upload(self, file: Path) -> None:
        self.one("#audio input[type=file]").send_keys(str(file))

    def press(self) -> str:
        """Presses the button until the upload has arrived and there is an answer; returns all of it."""
        for _ in range(30):
            self.one("#transcribe").click()
            answer = self.one("#result .page").text
            if "nothing to transcribe yet" not in answer:
                return answer
            time.sleep(1)
        raise AssertionError("the recording never reached the page")

    def transcribe(self) -> dict[str, str]:
        """Texts by role, as they are read without the words that are struck through."""
        self.press()
        return self.driver.execute_script(
            "return Object.fromEntries([...document.querySelectorAll('.transcript')].map(one => {"
            "const text = one.querySelector('.text').cloneNode(true);"
            "text.querySelectorAll('del').forEach(word => word.remove());"
            "return [one.dataset.role, text.textContent.trim().replace(/\\s+/g, ' ')]}))"
        )

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.driver.execute_script("return document.scrollingElement.scrollWidth - innerWidth")

    def other_hosts(self) -> list[str]:
        """What was asked of anyone but this machine."""
        names = self.driver.execute_script("return performance.getEntriesByType('resource').map(one => one.name)")
        return [name for name in names if not name.startswith(("http://127.0.0.1", "blob:http://127.0.0.1", "data:"))]


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_file_is_uploaded_and_three_texts_are_read(
    size: tuple[int, int], open_page: Callable, models: tuple, recording: Path
) -> None:
    """A page that works in Python may still not show, not fit, or wait for a font of another host."""
    teacher, student, processor = models
    page = open_page(size)
    assert ODD_NAME in page.driver.find_element("tag name", "body").text
    page.upload(recording)
    texts = page.transcribe()
    alone = [transcribe(model, processor, str(recording))[0].text for model in (teacher, student)]
    assert texts == {TEACHER: alone[0], STUDENT: " ".join(alone[1].split()), ASSISTED: alone[0]}
    assert page.overflow() <= 0
    boxes = [one.rect for one in page.some(".transcript")]
    assert all(0 <= box["x"] and box["x"] + box["width"] <= size[0] and box["height"] > 0 for box in boxes)
    tops = {box["y"] for box in boxes}
    assert len(tops) == (1 if size == DESKTOP else 3)  # side by side, or below one another
    assert page.other_hosts() == []


def test_a_microphone_recording_is_transcribed(open_page: Callable) -> None:
    """Browsers record in containers that this library may not read."""
    page = open_page(DESKTOP)
    page.one("#audio button[aria-label='Record audio']").click()
    page.one("#audio .record-button").click()
    time.sleep(3)
    next(one for one in page.some("#audio button") if one.text == "Stop" and one.is_displayed()).click()
    texts = page.transcribe()
    assert texts[TEACHER]
    assert texts[ASSISTED] == texts[TEACHER]


def test_the_sample_is_transcribed(open_page: Callable) -> None:
    """A sample that the server does not hand out ends in an error on the page only."""
    page = open_page(DESKTOP)
    page.one(".gallery-item, table tbody tr").click()
    assert set(page.transcribe()) == {TEACHER, STUDENT, ASSISTED}
    assert page.other_hosts() == []


def test_the_page_says_what_is_wrong_with_a_file(open_page: Callable, tmp_path: Path) -> None:
    """Gradio shows "Error", and the message stays on the server."""
    page = open_page(PHONE)
    page.one("#transcribe").click()
    assert "nothing to transcribe yet" in page.one(".message").text
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF but nothing more")
    page.upload(broken)
    assert "broken.wav: " in page.press()
    assert "Traceback" not in page.driver.page_source
    assert page.overflow() <= 0
