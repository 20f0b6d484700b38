"""A model behind HTTP: the server in this process with a model that needs no TensorFlow."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
import yaml
from doors import Process
from PIL import Image

from fmnist_lab.benchmark.serve import Request, asking, in_base64, malformed, picture
from fmnist_lab.data import FASHION_MNIST
from fmnist_lab.errors import UserError
from fmnist_lab.evaluation.scaling import Scaling
from fmnist_lab.runs import serve as door
from fmnist_lab.runs.ui import free_port
from fmnist_lab.serving.answers import (
    BATCH,
    MOST_FILES,
    MOST_IMAGES,
    Answerer,
    RefusedRequest,
)
from fmnist_lab.serving.app import MOST_BYTES, app

NAMES = ("dark", "grey", "light")


def brightness(images: np.ndarray) -> np.ndarray:
    """A model: how near an image's mean is to each of three grey levels."""
    assert images.dtype == np.uint8
    assert len(images) <= BATCH
    mean = images.reshape(len(images), -1).mean(1)
    scores = np.exp(-np.abs(mean[:, None] - [0, 80, 200]) / 30).astype(np.float32)
    return scores / scores.sum(1, keepdims=True)


@contextlib.contextmanager
def served(answerer: Answerer, title: str = "run 'x'") -> Iterator[int]:
    """Serve a model on a thread, and yield the port."""
    with door.listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        config = uvicorn.Config(app(answerer, title), log_level="critical", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield port
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(Answerer(brightness, (28, 28), NAMES)) as port:
        yield port


def send(port: int, request: Request) -> tuple[int, dict]:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as line:
        return request.send(line)


def predictions(port: int, body: bytes) -> list[dict]:
    status, told = send(port, Request(body))
    assert status == 200, told
    return told["predictions"]


@pytest.fixture
def image() -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture())))


def test_an_array_and_an_image_file_get_the_same_answer(port, image):
    file = in_base64(picture())
    ways = [image.tolist(), file, f"data:image/png;base64,{file}", {"b64": file}]
    answers = predictions(port, asking(*ways, top_k=2))
    assert all(answer == answers[0] for answer in answers)
    expected = brightness(image[None])[0]
    assert list(answers[0]["probabilities"]) == list(NAMES)
    np.testing.assert_array_equal(list(answers[0]["probabilities"].values()), expected)
    best = np.argsort(-expected)[:2]
    assert [each["label"] for each in answers[0]["top_k"]] == [NAMES[each] for each in best]
    assert answers[0]["label"] == NAMES[best[0]]
    assert answers[0]["confidence"] == answers[0]["top_k"][0]["confidence"] == expected.max()
    assert answers[0]["abstained"] is None


@pytest.mark.parametrize("kind", malformed())
def test_a_malformed_request_is_refused_with_its_reason(port, image, kind):
    request = malformed()[kind]
    status, told = send(port, request)
    assert status == request.status
    assert list(told) == ["error"]
    assert re.search("received|takes|there is no|expected|make it smaller", told["error"])
    assert "Traceback" not in told["error"]
    assert len(told["error"]) < 400
    assert predictions(port, asking(image.tolist()))


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused_before_it_is_kept(port, announced):
    part = bytes(1_000_000)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as line:
        line.putrequest("POST", "/invocations")
        line.putheader("Content-Type", "application/json")
        if announced:
            # As curl does with a large body: it waits for a word before it sends any of it.
            line.putheader("Content-Length", str(10**12))
            line.putheader("Expect", "100-continue")
            line.endheaders()
        else:
            line.putheader("Transfer-Encoding", "chunked")
            line.endheaders()
            for _ in range(MOST_BYTES // len(part) + 2):
                line.send(b"%x\r\n%b\r\n" % (len(part), part))
            line.send(b"0\r\n\r\n")
        response = line.getresponse()
        assert response.status == 413
        assert f"more than {MOST_BYTES:,} bytes" in json.loads(response.read())["error"]


def test_a_client_that_leaves_in_the_middle_and_noise_do_no_harm(port, image):
    for noise in (
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{",
        b"\x00\xff\x00" * 100,
        b"",
    ):
        with socket.create_connection(("127.0.0.1", port), 10) as line:
            line.sendall(noise)
    assert predictions(port, asking(image.tolist()))


def test_a_batch_is_answered_in_order_and_by_parts():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2 * BATCH + 3, 1, 1)).astype(np.uint8)
    answers = Answerer(brightness, (1, 1), NAMES).answer(images)
    labels = [NAMES[each] for start in (0, 500, 1000)
              for each in brightness(images[start:][:BATCH]).argmax(1)]  # fmt: skip
    assert [answer["label"] for answer in answers] == labels
    with pytest.raises(RefusedRequest, match="received 10,001 images"):
        Answerer(brightness, (1, 1), NAMES).answer([[[0]]] * (MOST_IMAGES + 1))


def test_what_the_model_sees_of_a_photograph_is_shown(port, image):
    photograph, small = predictions(
        port, asking(in_base64(picture(400, 300, "JPEG")), image.tolist(), show=True)
    )
    assert small["seen"] == {"pixels": image.tolist()}
    seen = photograph["seen"]
    assert np.shape(seen["pixels"]) == (28, 28)
    assert (seen["converted"], seen["negated"], seen["size"]) == (True, True, [400, 300])
    np.testing.assert_allclose(seen["box"], [100, 60, 301, 241], atol=3)
    head, _, content = seen["thumbnail"].partition(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (320, 240)
    # It is the picture that decided on the answer.
    again = Answerer(brightness, (28, 28), NAMES).answer([seen["pixels"]])
    assert again[0]["probabilities"] == photograph["probabilities"]


def test_many_image_files_are_refused_and_few_keep_no_thumbnail(image):
    answerer = Answerer(brightness, (28, 28), NAMES)
    file = in_base64(picture())
    assert answerer._see(file, 0, show=False).photograph is None
    for files in ([file] * (MOST_FILES + 1), [{"b64": file}] * (MOST_FILES + 1)):
        with pytest.raises(RefusedRequest, match="received 201 image files, expected at most 200"):
            answerer.answer([image, *files])


def test_a_model_in_colour_takes_arrays_and_files_in_colour():
    pixels = np.random.default_rng(0).integers(0, 256, (8, 6, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    answerer = Answerer(brightness, (8, 6, 3), NAMES)
    array, picture = answerer.answer([pixels, in_base64(file.getvalue())], {"show": True})
    assert array["seen"]["pixels"] == picture["seen"]["pixels"] == pixels.tolist()
    with pytest.raises(RefusedRequest, match=r"shape \(8, 6\); .* each a \[red, green, blue\]"):
        answerer.answer([pixels[..., 0]])


def test_a_calibrated_model_abstains_below_its_threshold(tmp_path, image):
    (tmp_path / "calibration.json").write_text(
        json.dumps({"temperature": 2, "threshold": 0.6, "coverage": 0.9, "images": 5000})
    )
    answerer = Answerer(brightness, (28, 28), NAMES, Scaling.read(tmp_path))
    # Softmax of log(p) / 2 is √p, normalised.
    expected = np.sqrt(brightness(image[None])[0])
    expected /= expected.sum()
    dark, unsure = answerer.answer([np.zeros((28, 28), int), np.full((28, 28), 40)])
    (told,) = answerer.answer([image])
    np.testing.assert_allclose(list(told["probabilities"].values()), expected, rtol=1e-6)
    assert dark["confidence"] > 0.6
    assert (dark["abstained"], unsure["abstained"]) == (False, True)
    assert unsure["confidence"] < 0.6


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"temperature": 0, "threshold": 0.5}', '{"temperature": "x"}']
)
def test_a_damaged_calibration_is_refused(tmp_path, text):
    assert Scaling.read(tmp_path) is None
    (tmp_path / "calibration.json").write_text(text)
    with pytest.raises(ValueError, match=r"calibration\.json"):
        Scaling.read(tmp_path)


def test_a_model_that_fails_is_told_and_the_server_stays(image):
    def diverged(images: np.ndarray) -> np.ndarray:
        return brightness(images) * np.where(images.any(axis=(1, 2)), 1, np.nan)[:, None]

    with served(Answerer(diverged, (28, 28), NAMES)) as port:
        status, told = send(port, Request(asking(np.zeros((28, 28), int).tolist())))
        assert (status, list(told)) == (500, ["error"])
        assert "the model failed: its probabilities are no numbers" in told["error"]
        assert predictions(port, asking(image.tolist()))


def test_the_page_needs_nothing_else_and_a_name_does_not_end_its_script():
    with served(Answerer(brightness, (28, 28), NAMES), "</script><b>x") as port:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as line:
            line.request("GET", "/")
            response = line.getresponse()
            page = response.read().decode()
        assert send(port, Request(method="GET", path="/health")) == (
            200,
            {"status": "ok", "model": "</script><b>x"},
        )
    assert response.getheader("Content-Type") == "text/html; charset=utf-8"
    assert "default-src 'none'" in response.getheader("Content-Security-Policy")
    assert page.count("</script>") == 1
    assert '"title": "\\u003c/script>\\u003cb>x"' in page
    assert not re.findall(r"(?:src|href)=\"(?!data:)|https?://|@import|url\(", page)


def test_small_answers_are_sent_at_once(port, image):
    """Otherwise each answer waits 40 ms for the client's acknowledgement."""
    body = asking(image.tolist())
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as line:
        times = []
        for _ in range(20):
            start = time.perf_counter()
            assert Request(body).send(line)[0] == 200
            times.append(time.perf_counter() - start)
    assert min(times) < 0.03


def test_a_port_that_is_taken_and_an_address_elsewhere_are_refused(capsys):
    with door.listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127\.0\.0\.1, port {port} "):
            door.listening("127.0.0.1", port)
    for port in (-1, 70_000):
        with pytest.raises(UserError, match="name another with --port"):
            door.listening("127.0.0.1", port)
    with pytest.raises(UserError, match="leave it out for 127"):
        door.listening("no such host", 0)
    assert capsys.readouterr() == ("", "")


def test_an_address_that_other_machines_reach_is_warned_of(monkeypatch, capsys):
    class Socket:
        def __init__(self, *_: object) -> None: ...
        def setsockopt(self, *_: object) -> None: ...
        def bind(self, address: tuple) -> None: ...
        def listen(self, _: int) -> None: ...

    monkeypatch.setattr(door.socket, "socket", Socket)
    door.listening("192.0.2.1", 80)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("--host 192.0.2.1 lets every machine that reaches this address ask")
    assert err.count("\n") == 1


# The real server

ROOT = Path(door.__file__).parents[2]
PAGE = ROOT / "docs/serving.md"


def curls() -> list[str]:
    """The commands of the page that send an image."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [block for block in blocks if "curl " in block]


def pasted(command: str, port: int) -> list[dict]:
    """Run a command of the page in bash, for another port."""
    command = command.replace(":5001/", f":{port}/")
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, check=True)
    return json.loads(done.stdout)["predictions"]


def wait_for(server, port: int) -> None:
    end = time.monotonic() + 180
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        assert server.running, server.err
        assert time.monotonic() < end, "nothing listens after three minutes"
        time.sleep(0.2)


@pytest.fixture
def port_of(doors) -> Callable[..., int]:
    """A function that starts `runs serve` and returns its port."""

    def start(folder: Path, *words: str) -> int:
        port = free_port(5100)
        wait_for(doors.start("runs", folder, "serve", *words, f"--port={port}"), port)
        return port

    return start


@pytest.mark.slow
@pytest.mark.skipif(not PAGE.exists(), reason="the tests do not run from a checkout")
def test_the_commands_of_the_page_work_and_mlflows_server_gives_the_same_answers(
    tracked, doors, port_of
):
    assert len(curls()) == 2
    port = port_of(tracked.folder, tracked.run.info.run_name)
    first, second = (pasted(command, port) for command in curls())
    assert first == second
    assert len(first) == 1
    assert len(first[0]["top_k"]) == 3
    assert list(first[0]["probabilities"]) == list(FASHION_MNIST.class_names)

    port = free_port(5200)
    words = re.search(r"^mlflow (models serve .*)$", PAGE.read_text(), re.M)[1]
    words = words.replace("RUN_ID", tracked.run.info.run_id).replace("5001", str(port)).split()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    code = "import runpy, sys; sys.argv[0] = 'mlflow'; runpy.run_module('mlflow', alter_sys=True)"
    env = {"MLFLOW_TRACKING_URI": tracked.uri, "PATH": path}
    server = Process(tracked.folder, "-c", code, *words, env=env)
    doors.started.append(server)
    wait_for(server, port)
    assert pasted(curls()[0], port) == first
    status, told = send(port, Request(asking("AAAA")))
    assert status == 400
    assert told["message"].startswith("image 0: it cannot be read as an image")


@pytest.mark.slow
def test_a_model_of_an_earlier_version_is_served_from_its_folder(tracked, port_of, tmp_path):
    (output,) = tracked.run.outputs.model_outputs
    model = tracked.folder / "mlruns/fmnist_lab/models" / output.model_id / "artifacts"
    earlier = shutil.copytree(model, tmp_path / "model", ignore=shutil.ignore_patterns("code"))
    description = yaml.safe_load((earlier / "MLmodel").read_text())
    flavor = description["flavors"]["python_function"]
    del flavor["code"], flavor["data"], description["signature"]
    flavor["loader_module"] = "mlflow.keras"
    (earlier / "MLmodel").write_text(yaml.safe_dump(description))
    port = port_of(tmp_path, "model")
    file = (ROOT / "examples/shoe.png").read_bytes()
    (answer,) = predictions(port, asking(in_base64(file)))
    assert answer["label"] in FASHION_MNIST.class_names


@pytest.mark.slow
def test_a_run_without_a_model_is_refused(tracked, doors):
    process = doors("runs", tracked.folder, "serve", "no such run")
    assert "received 'no such run', which is no run in" in process.error
    process = doors("runs", tracked.folder, "serve", "models:/nobody/1")
    assert "received the model 'models:/nobody/1', which is not in" in process.error
