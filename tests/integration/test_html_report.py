"""The HTML report in a real browser: it shows what it should, fits a phone, and loads nothing from anywhere."""

from __future__ import annotations

import os
import re
import shutil
import struct
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ktp.model.diagnosis import ServiceDiagnosis
from ktp.render.report_html import html_report
from tests.unit.diagnose.worlds import LOCAL, Asked, demo, recorded
from tests.unit.render.poison import poisoned

CHROMIUM = next((c for c in ("chromium", "chromium-browser", "google-chrome") if shutil.which(c)), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def reports() -> list[ServiceDiagnosis]:
    return [Asked(demo(), LOCAL).diagnosis(), Asked(recorded(), "edge/local-lb").diagnosis()]


def browse(page: str, folder: Path, *words: str) -> str:
    """What Chromium prints of a page."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    file = folder / "report.html"
    file.write_text(page, encoding="utf-8")
    done = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", *words, file.as_uri()],
        capture_output=True, text=True, check=False, timeout=60, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


class Outline(HTMLParser):
    """The elements, their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def assert_harmless(page: str) -> None:
    """Nothing that runs, nothing that is fetched."""
    found = Outline(page)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form", "a", "svg"} & set(
        found.tags
    )
    assert not [
        a for a in found.attributes if a[1].startswith("on") or a[1] in ("src", "href", "action", "srcset")
    ]
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert "@import" not in style
    assert "url(" not in style
    assert all("url(" not in value for _, name, value in found.attributes if name == "style")
    metas = [value for tag, name, value in found.attributes if tag == "meta" and name == "http-equiv"]
    assert all(value.lower() == "content-security-policy" for value in metas)


def test_the_browser_builds_the_page_that_was_written(
    reports: list[ServiceDiagnosis], tmp_path: Path
) -> None:
    page = html_report(reports)
    assert_harmless(page)
    built = browse(page, tmp_path, "--dump-dom")
    assert_harmless(built)
    shown = " ".join(" ".join(Outline(built).words).split())
    for d in reports:
        assert " ".join(d.verdict.split()) in shown
    assert "The packet's way" in shown
    assert "Load share of outside traffic" in shown
    assert "KTP501 NoLocalEndpoint (error)" in shown
    written, seen = Outline(page).tags, Outline(built).tags
    assert [t for t in seen if t != "tbody"] == written, "the browser had nothing to repair"


@pytest.mark.parametrize("size", SIZES)
def test_it_fits_the_window(size: str, reports: list[ServiceDiagnosis], tmp_path: Path) -> None:
    """The page says its own width; only tables scroll, each by itself. KTP_SCREENSHOTS keeps the pictures."""
    width, height = SIZES[size]
    tell = (
        "<script>addEventListener('load', () => document.title = "
        "[document.documentElement.scrollWidth, innerWidth].join('/'))</script></body>"
    )
    page = html_report(reports)
    # The policy of the page forbids the script with which the test measures.
    page_that_tells = re.sub(r"<meta http-equiv[^>]*>", "", page).replace("</body>", tell)
    built = browse(page_that_tells, tmp_path, f"--window-size={width},{height}", "--dump-dom")
    found = re.search(r"<title>(\d+)/(\d+)</title>", built)
    assert found is not None
    assert int(found.group(1)) <= int(found.group(2))
    picture = Path(os.environ.get("KTP_SCREENSHOTS") or tmp_path) / f"{size}.png"
    browse(page, tmp_path, f"--window-size={width},{height}", f"--screenshot={picture}")
    head = picture.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    assert struct.unpack(">II", head[16:24]) == (width, height)


def test_hostile_names_stay_names(reports: list[ServiceDiagnosis], tmp_path: Path) -> None:
    page = html_report([poisoned(d) for d in reports])
    assert_harmless(page)
    built = browse(page, tmp_path, "--dump-dom")
    assert_harmless(built)
    assert re.findall(r"<title>(.*?)</title>", built) == ["ktp: 2 Services"]
    assert "alert(" in "".join(Outline(built).words), "it is shown as text"


def test_the_page_forbids_what_it_does_not_need(reports: list[ServiceDiagnosis]) -> None:
    page = html_report(reports)
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page


def test_one_service_or_several(reports: list[ServiceDiagnosis]) -> None:
    assert f"<title>ktp: {reports[0].key}</title>" in html_report(reports[:1])
    assert "<title>ktp: 2 Services</title>" in html_report(reports)
    assert html_report([replace(reports[0], findings=(), ways=(), shares=())]).count("<h2>") == 1
