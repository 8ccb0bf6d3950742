"""Files over the network: a server on this machine plays every part, good and bad."""

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from raysnap.datasets.published import SOURCES, DatasetSource, SourceFile
from raysnap.errors import DataError
from raysnap.prepare import downloads
from raysnap.prepare.downloads import Patience, download, download_dataset

CONTENT = bytes(range(256)) * 4096  # 1 MiB
MD5 = f"md5:{hashlib.md5(CONTENT).hexdigest()}"
SHA256 = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
SHORT = Patience(
    connect_s=0.3, read_s=0.3, window_s=0.3, window_bytes=1000, num_attempts=3, backoff_s=0.01, max_bytes=4_000_000
)


@dataclass
class Server:
    """Answers the n-th request by the n-th of `answers`, and every later one by the last; keeps what it was asked."""

    url: str
    answers: list[Callable] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)

    def ranges(self):
        return [headers.get("Range") for _, headers in self.requests]


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "*")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.close_connection = True
            plays.requests.append((self.path, dict(self.headers)))
            answer = plays.answers[min(len(plays.requests), len(plays.answers)) - 1]
            try:
                answer(self)
            except (BrokenPipeError, ConnectionResetError):
                return

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = False
        plays = Server(f"http://127.0.0.1:{httpd.server_port}/data.bin")
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield plays
        httpd.shutdown()
        thread.join()


def head(handler, status, **headers):
    handler.send_response(status)
    handler.send_header("Connection", "close")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), str(value))
    handler.end_headers()


def status(code, **headers):
    return lambda handler: head(handler, code, Content_Length=0, **headers)


def whole(content=CONTENT, etag='"one"', **headers):
    """Return a server without ranges."""

    def answer(handler):
        head(handler, 200, Content_Length=len(content), **({"ETag": etag} if etag else {}), **headers)
        handler.wfile.write(content)

    return answer


def cut(at, content=CONTENT, **validators):
    """Return a server that sends the beginning and then ends the connection."""

    def answer(handler):
        head(handler, 200, Content_Length=len(content), **(validators or {"ETag": '"one"'}))
        handler.wfile.write(content[:at])

    return answer


def rest(content=CONTENT, etag='"one"', until=None, shift=0, heeds_condition=True):
    """Return a server that knows ranges, and the condition that comes with them."""

    def answer(handler):
        if heeds_condition and handler.headers.get("If-Range") != etag:
            whole(content, etag)(handler)
            return
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-")) + shift
        head(
            handler, 206, Content_Length=len(content) - start, ETag=etag,
            Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}",
        )  # fmt: skip
        handler.wfile.write(content[start:until])

    return answer


def stalling(handler):
    head(handler, 200, Content_Length=len(CONTENT))
    handler.wfile.write(CONTENT[:1000])
    time.sleep(0.5)


def silent(handler):
    time.sleep(0.5)


def trickling(handler):
    head(handler, 200, Content_Length=len(CONTENT))
    for _ in range(20):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def trickling_resumably(handler):
    """Send a byte at a time of a file that could be resumed for ever."""
    head(handler, 200, Content_Length=len(CONTENT), ETag='"one"')
    for _ in range(20):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def trickling_head(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Filler: ")
    for _ in range(20):
        handler.wfile.write(b"x")
        time.sleep(0.05)


def endless(handler):
    head(handler, 200)
    while True:
        handler.wfile.write(CONTENT)


def endless_chunks(handler):
    head(handler, 200, Transfer_Encoding="chunked")
    while True:
        handler.wfile.write(b"100000\r\n" + CONTENT + b"\r\n")


def get(server, folder, digest=MD5, patience=SHORT, **kwargs):
    return download(SourceFile("data.bin", server.url, digest), folder, patience=patience, **kwargs)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("digest", [MD5, SHA256])
def test_a_file_arrives_whole_and_is_not_fetched_again(server, tmp_path, digest):
    server.answers = [whole()]
    path = get(server, tmp_path / "new" / "folder", digest)
    assert path.read_bytes() == CONTENT
    assert names_in(path.parent) == ["data.bin"]
    assert get(server, path.parent, digest) == path
    assert len(server.requests) == 1
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_a_damaged_file_is_downloaded_again(server, tmp_path):
    server.answers = [whole()]
    (tmp_path / "data.bin").write_bytes(CONTENT[:-1])
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_progress_is_reported_in_whole_units_and_seldom(server, tmp_path):
    server.answers = [whole(CONTENT * 3)]
    shown = []
    digest = f"md5:{hashlib.md5(CONTENT * 3).hexdigest()}"
    get(server, tmp_path, digest, on_progress=lambda *facts: shown.append(facts))
    assert shown[-1] == ("data.bin", 3, 3, "MB")
    assert len(shown) <= 51


GIVES_UP_AT_ONCE = {
    "gone": (status(404), "found HTTP 404 Not Found"),
    "forbidden": (status(403), "found HTTP 403 Forbidden"),
    "redirect to http": (status(302, Location="http://198.51.100.7/data.bin"), "expected an https address, found http"),
    "redirect to a file": (status(301, Location="file:///etc/passwd"), "expected an https address, found file"),
    "redirect for ever": (status(302, Location="/again"), "found more than 5 redirects"),
    "announces too much": (
        lambda handler: head(handler, 200, Content_Length=10**12), r"expected at most 4.00.MB, found more",
    ),
    "never ends": (endless, r"expected at most 4.00.MB, found more"),
    "chunks that never end": (endless_chunks, r"expected at most 4.00.MB, found more"),
    "another file": (whole(CONTENT[::-1]), f"expected {MD5}, found md5:.*; the download was deleted, try again"),
}  # fmt: skip


@pytest.mark.parametrize("case", GIVES_UP_AT_ONCE)
def test_a_fault_that_stays_ends_at_once_and_leaves_nothing(server, tmp_path, case):
    answer, message = GIVES_UP_AT_ONCE[case]
    server.answers = [answer]
    with pytest.raises(DataError, match=message) as caught:
        get(server, tmp_path, patience=replace(SHORT, connect_s=9, read_s=9, window_s=9))  # however busy the machine is
    assert server.url in str(caught.value) and "\n" not in str(caught.value)
    assert len(server.requests) == (6 if case == "redirect for ever" else 1)
    assert names_in(tmp_path) == []


GIVES_UP_AFTER_SOME_ATTEMPTS = {
    "always 500": (status(500), "found HTTP 500 Internal Server Error"),
    "always busy": (status(429, Retry_After="0"), "found HTTP 429 Too Many Requests"),
    "says nothing": (silent, "found no answer within 0.3 s"),
    "stalls": (stalling, "found no answer within 0.3 s"),
    "trickles": (trickling, "which is too slow"),
    "trickles resumably": (trickling_resumably, "which is too slow"),
    "trickles before it begins": (trickling_head, "found no whole answer within 0.6 s"),
    "hangs up": (lambda handler: None, "found a broken connection"),
    "nothing in it": (status(200), "found an empty file"),
}


@pytest.mark.parametrize("case", GIVES_UP_AFTER_SOME_ATTEMPTS)
def test_a_fault_that_may_pass_is_given_some_attempts(server, tmp_path, case):
    answer, message = GIVES_UP_AFTER_SOME_ATTEMPTS[case]
    server.answers = [answer]
    with pytest.raises(DataError, match=rf"{message} \(3.attempts in a row\); try again later"):
        get(server, tmp_path)
    assert 3 <= len(server.requests) <= 5
    assert "data.bin" not in names_in(tmp_path)


@pytest.mark.parametrize("fault", [status(500), status(503), silent, stalling, cut(0)])
def test_a_fault_that_passes_is_not_noticed(server, tmp_path, fault):
    server.answers = [fault, fault, whole()]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert names_in(tmp_path) == ["data.bin"]


def test_nothing_for_too_long_ends_any_number_of_attempts(server, tmp_path):
    server.answers = [silent]
    began_s = time.monotonic()
    with pytest.raises(DataError, match="found no answer within"):
        get(server, tmp_path, patience=replace(SHORT, num_attempts=1000, stall_s=1))
    assert 3 <= len(server.requests) <= 6
    assert time.monotonic() - began_s < 60


def test_a_missing_server_is_reported_in_one_line(tmp_path):
    gone = SourceFile("data.bin", "http://127.0.0.1:9/data.bin", MD5)
    with pytest.raises(DataError, match=r"found a refused connection \(3.attempts in a row\)"):
        download(gone, tmp_path, patience=SHORT)


def test_a_cut_download_resumes_if_the_file_is_the_same(server, tmp_path):
    server.answers = [cut(300_000), rest(until=700_000), rest()]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [None, "bytes=300000-", "bytes=700000-"]
    assert server.requests[1][1]["If-Range"] == '"one"'


def test_an_attempt_that_brings_something_resets_the_count(server, tmp_path):
    ends = range(100_000, 1_000_000, 100_000)
    server.answers = [cut(50_000), *(rest(until=end) for end in ends), rest()]
    assert get(server, tmp_path).read_bytes() == CONTENT


def test_a_later_call_resumes_where_an_earlier_one_gave_up(server, tmp_path):
    server.answers = [cut(300_000), status(500)]
    with pytest.raises(DataError, match=r"300.kB are kept and the next call resumes there"):
        get(server, tmp_path)
    assert (tmp_path / "data.bin.part").stat().st_size == 300_000
    server.answers, server.requests = [rest()], []
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges() == ["bytes=300000-"]
    assert names_in(tmp_path) == ["data.bin"]


def test_an_interrupt_leaves_what_can_be_resumed(server, tmp_path):
    def interrupt(*_):
        raise KeyboardInterrupt

    server.answers = [whole()]
    with pytest.raises(KeyboardInterrupt):
        get(server, tmp_path, on_progress=interrupt)
    num_bytes = (tmp_path / "data.bin.part").stat().st_size
    assert 0 < num_bytes < len(CONTENT)
    server.answers, server.requests = [rest()], []
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.ranges() == [f"bytes={num_bytes}-"]


NEW = CONTENT[1000:] + CONTENT[:1000]
STARTS_ANEW = {
    "the server ignores ranges": [cut(300_000), whole()],
    "the file changed": [cut(300_000, NEW, ETag='"old"'), rest()],
    "it changed and the condition is not heeded": [
        cut(300_000, NEW, ETag='"old"'), rest(heeds_condition=False), whole(),
    ],
    "the range is another": [cut(300_000), rest(shift=5), whole()],
    "the range is past the end": [cut(300_000), status(416), whole()],
    "a weak ETag": [cut(300_000, ETag='W/"one"'), whole()],
    "nothing to tell versions apart": [cut(300_000, Server="x"), whole()],
}  # fmt: skip


@pytest.mark.parametrize("case", STARTS_ANEW)
def test_a_part_that_may_be_of_another_file_is_restarted(server, tmp_path, case):
    server.answers = STARTS_ANEW[case]
    assert get(server, tmp_path).read_bytes() == CONTENT
    resumes = "weak" not in case and "nothing" not in case
    assert server.ranges()[1] == ("bytes=300000-" if resumes else None)


def test_last_modified_serves_where_there_is_no_etag(server, tmp_path):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.answers = [cut(300_000, Last_Modified=date), rest(etag=date)]
    assert get(server, tmp_path).read_bytes() == CONTENT
    assert server.requests[1][1]["If-Range"] == date


def test_a_file_without_a_published_digest_is_pinned(server, tmp_path):
    server.answers = [whole()]
    path = get(server, tmp_path, digest=None)
    assert json.loads((tmp_path / "data.bin.pin.json").read_text())["digest"] == SHA256
    assert get(server, tmp_path, digest=None) == path and len(server.requests) == 1
    path.unlink()
    assert get(server, tmp_path, digest=None).read_bytes() == CONTENT
    path.unlink()
    server.answers = [whole(NEW)]
    with pytest.raises(DataError, match=f"expected {SHA256} .*delete .*data.bin.pin.json.*found sha256"):
        get(server, tmp_path, digest=None)
    assert names_in(tmp_path) == ["data.bin.pin.json"]


def test_a_file_put_there_by_hand_is_pinned_too(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(CONTENT)
    get(server, tmp_path, digest=None)
    assert server.requests == [] and SHA256 in (tmp_path / "data.bin.pin.json").read_text()


def test_what_may_be_a_login_page_or_a_piece_is_not_pinned(server, tmp_path):
    def unmeasured(handler):
        head(handler, 200)
        handler.wfile.write(CONTENT)

    for answer, message in (
        (whole(Content_Type="text/html; charset=utf-8"), "a web page"),
        (unmeasured, "a known length"),
    ):
        server.answers = [answer]
        with pytest.raises(DataError, match=message):
            get(server, tmp_path, digest=None)
    assert names_in(tmp_path) == []
    server.answers = [unmeasured]
    assert get(server, tmp_path, digest=MD5).read_bytes() == CONTENT


def test_a_full_disk_is_reported_before_a_byte_is_written(server, tmp_path, monkeypatch):
    server.answers = [whole()]
    monkeypatch.setattr(downloads, "FREE_BYTES", 10**18)
    with pytest.raises(DataError, match=r"can't be written: 1000.PB are needed, .* are free; free space there"):
        get(server, tmp_path)
    assert names_in(tmp_path) == []


def test_a_file_in_place_of_the_folder_is_reported_in_one_line(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"file/data.bin: can't be written"):
        get(server, tmp_path / "file")


UNSAFE = [
    ("http://example.com/a", "http://example.com/a"),
    ("http://127.0.0.1.example.com/a", "http://127.0.0.1.example.com/a"),
    ("http://127.0.0.1@example.com/a", "http://127.0.0.1@example.com/a"),
    ("http://example.com/a", "https://example.com/a"),
    ("http://127.0.0.1/a", "https://example.com/a"),
    ("http://localhost/a", "https://localhost/a"),
    ("ftp://127.0.0.1/a", "ftp://127.0.0.1/a"),
    ("file:///etc/passwd", "http://localhost/a"),
    ("/a", "/a"),
]


@pytest.mark.parametrize(("url", "first_url"), UNSAFE)
def test_only_https_is_used_and_http_on_this_machine(url, first_url):
    with pytest.raises(DataError, match="expected an https address"):
        downloads._refuse_unsafe(url, first_url)


@pytest.mark.parametrize("url", ["https://example.com/a", "http://127.0.0.1:80/a", "http://[::1]/a"])
def test_https_and_this_machine_are_asked(url):
    assert downloads._refuse_unsafe(url, url) is None


def test_two_at_once_fetch_a_file_once(server, tmp_path):
    def slow(handler):
        head(handler, 200, Content_Length=len(CONTENT), ETag='"one"')
        for start in range(0, len(CONTENT), 2**17):
            handler.wfile.write(CONTENT[start : start + 2**17])
            time.sleep(0.02)

    server.answers = [slow]
    paths = []
    threads = [threading.Thread(target=lambda: paths.append(get(server, tmp_path))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True] * 4
    assert len(server.requests) == 1
    assert names_in(tmp_path) == ["data.bin"]


def test_all_files_of_a_dataset_come_into_one_folder(server, tmp_path, monkeypatch):
    server.answers = [whole()]
    files = tuple(SourceFile(name, server.url.replace("data.bin", name), MD5) for name in ("a.tar", "b.tar"))
    monkeypatch.setitem(SOURCES, "two", DatasetSource("Two", "https://two.example", files, "Free.", 2))
    folder = download_dataset("two", tmp_path, patience=SHORT)
    assert folder == tmp_path / ".downloads" / "two"
    assert names_in(folder) == ["a.tar", "b.tar"]
    assert [path for path, _ in server.requests] == ["/a.tar", "/b.tar"]


def test_a_dataset_that_can_not_be_fetched_says_where_it_is(server, tmp_path, monkeypatch):
    server.answers = [status(404)]
    files = (SourceFile("a.tar", server.url),)
    monkeypatch.setitem(SOURCES, "one", DatasetSource("One", "https://one.example", files, "Free.", 2))
    with pytest.raises(
        DataError, match="HTTP 404.*; or download it yourself from https://one.example and pass --source"
    ):
        download_dataset("one", tmp_path, patience=SHORT)
    with pytest.raises(DataError, match="get images.tar, lists.tar from http://vision.stanford.edu"):
        download_dataset("stanford-dogs", tmp_path)
    with pytest.raises(DataError, match="one of cub-birds-200"):
        download_dataset("shapes-shape-a", tmp_path)
