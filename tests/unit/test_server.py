"""The served dashboard: what it gives out, what it computes, and whom it refuses."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from _features import POINT, make_sae, placed_on, source
from test_dashboard import unpack

from conf.commandline import check_command_line
from conf.effects import check_evaluation
from sae import evaluation
from sae.errors import ConfigError
from sae.evals.base import EvalResult
from sae.evals.dashboard import DashboardEval
from sae.reports.dashboard.server import MAX_BODY, Server
from sae.reports.pages import served, write_pages

__all__ = ["source"]  # a fixture


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "dashboard"
    for name in ("assets/main.js", "assets/vendor/grid.css", "assets/LICENSE", "data/index.js"):
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_text(f"content of {name}")
    (tmp_path / "secret.js").write_text("a secret")
    (made / "data/link.js").symlink_to(tmp_path / "secret.js")
    (made / "data/out").symlink_to(tmp_path)
    return made


@pytest.fixture
def server(folder):
    def slow(question):
        started.set()
        assert release.wait(10)
        return {}

    def refuse(question):
        raise ConfigError("too <long>")

    def fail(question):
        raise RuntimeError("a secret")

    started, release = threading.Event(), threading.Event()
    actions = {
        "/live/echo": lambda question: {"got": question}, "/live/slow": slow,
        "/live/refuse": refuse, "/live/fail": fail,
    }  # fmt: skip
    made = Server(folder, lambda token: f"<page {token}>", actions, 0)
    with running(made):
        made.started, made.release = started, release
        yield made
        release.set()


def ask(server, method, path, body=None, **headers):
    """Status, headers and content; headers of None are left out."""
    port = server.server_address[1]
    known = {"Host": f"127.0.0.1:{port}"}
    if method == "POST":
        known |= {"Origin": f"http://127.0.0.1:{port}", "X-Token": server.token,
                  "Content-Type": "application/json"}  # fmt: skip
        if isinstance(body, dict):
            body = json.dumps(body).encode()
        known["Content-Length"] = str(len(body or b""))
    known |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name, value in known.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def test_it_gives_out_the_page_and_its_files(server):
    for path in ("/", "/index.html", "/?x=1"):
        status, headers, content = ask(server, "GET", path)
        assert (status, content) == (200, f"<page {server.token}>".encode())
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert "connect-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    status, headers, content = ask(server, "GET", "/assets/vendor/grid.css")
    assert (status, content) == (200, b"content of assets/vendor/grid.css")
    assert headers["Content-Type"].startswith("text/css")
    status, headers, content = ask(server, "HEAD", "/data/index.js")
    assert (status, content) == (200, b"")
    assert headers["Content-Length"] == str(len("content of data/index.js"))
    assert server.server_address[0] == "127.0.0.1"


OUTSIDE = [
    "/../secret.js", "/data/../../secret.js", "/data/%2e%2e/%2e%2e/secret.js", "//secret.js",
    "/data/..%2f..%2fsecret.js", "/data/..\\..\\secret.js", "/data/link.js", "/data/out/secret.js",
    "/%2fetc%2fpasswd", "//etc/passwd", "/etc/passwd", "/data/index.js%00", "/data/index.js%00.css",
    "/data/", "/data", "/data/index.js/", "/./data/index.js", "/assets/LICENSE", "/DATA/index.js",
    "/data/%c0%ae%c0%ae/secret.js", "http://127.0.0.1/data/index.js", "file:///etc/passwd", "*",
    "/" + "a" * 60_000, "/data/%69ndex.js",
]  # fmt: skip


def test_no_path_leads_out(server):
    for path in OUTSIDE:
        status, _, content = ask(server, "GET", path)
        assert status == 404, path
        assert json.loads(content).keys() == {"error"}
    with socket.create_connection(server.server_address) as raw:
        raw.sendall(
            b"GET /data/\0index.js HTTP/1.1\r\nHost: %s\r\n\r\n" % min(server.hosts).encode()
        )
        assert b"200" not in raw.makefile("rb").readline()


def test_a_file_that_becomes_a_link_is_not_followed(server, folder, tmp_path):
    (folder / "data/index.js").unlink()
    assert ask(server, "GET", "/data/index.js")[0] == 404
    (folder / "data/index.js").symlink_to(tmp_path / "secret.js")
    assert ask(server, "GET", "/data/index.js")[0] == 404


def test_other_names_and_other_pages_are_refused(server):
    port = server.server_address[1]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "", None,
                 f"127.0.0.1.evil.example:{port}", f"evil.example#127.0.0.1:{port}"):  # fmt: skip
        for method in ("GET", "HEAD", "POST"):
            path = "/live/echo" if method == "POST" else "/"
            assert ask(server, method, path, {}, Host=host)[0] == 403, (method, host)
    assert ask(server, "GET", "/", Host=f"localhost:{port}")[0] == 200
    for origin in (
        "http://evil.example",
        "null",
        f"https://127.0.0.1:{port}",
        "http://127.0.0.1:1",
    ):
        assert ask(server, "POST", "/live/echo", {}, Origin=origin)[0] == 403
        assert ask(server, "GET", "/data/index.js", Origin=origin)[0] == 403
    assert ask(server, "POST", "/live/echo", {}, Origin=None)[0] == 403
    assert ask(server, "POST", "/live/echo", {}, Origin=f"http://localhost:{port}")[0] == 200


def test_a_question_needs_the_token_of_this_start(server, folder):
    other = Server(folder, str, {}, 0)
    other.server_close()
    assert len(server.token) > 40
    for token in (None, "", server.token[:-1], server.token + "x", other.token, "\xe9"):
        assert ask(server, "POST", "/live/echo", {}, X_Token=token)[0] == 403
    assert json.loads(ask(server, "POST", "/live/echo", {"a": "é"})[2]) == {"got": {"a": "é"}}


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        (413, b"", {"Content_Length": str(MAX_BODY + 1)}), (413, b"", {"Content_Length": "9" * 40}),
        (411, b"", {"Content_Length": None}), (411, b"{}", {"Content_Length": "-1"}),
        (411, b"{}", {"Content_Length": "1e3"}), (411, b"{}", {"Transfer_Encoding": "chunked"}),
        (415, b"{}", {"Content_Type": "text/plain"}), (415, b"{}", {"Content_Type": None}),
        (400, b"", {}), (400, b"[]", {}), (400, b"{", {}), (400, b"\xff", {}),
        (400, b"[" * 100_000, {}),
    ],
)  # fmt: skip
def test_odd_questions_are_refused(server, status, body, headers):
    found, told, content = ask(server, "POST", "/live/echo", body, **headers)
    assert found == status
    assert told["Content-Type"] == "application/json"
    assert json.loads(content).keys() == {"error"}


def test_other_methods_and_addresses_are_refused(server):
    assert ask(server, "GET", "/live/echo")[0] == 405
    assert ask(server, "POST", "/live/nothing", {})[0] == 404
    assert ask(server, "POST", "/data/index.js", {})[0] == 404
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "<script>"):
        status, headers, content = ask(server, method, "/")
        assert status == 501
        assert headers["Content-Type"] == "application/json"
        assert b"error" in content


def test_one_question_at_a_time(server):
    answers = []
    first = threading.Thread(
        target=lambda: answers.append(ask(server, "POST", "/live/slow", {})[0])
    )
    first.start()
    assert server.started.wait(10)
    status, headers, _ = ask(server, "POST", "/live/echo", {})
    assert (status, headers["Retry-After"]) == (503, "1")
    assert ask(server, "GET", "/")[0] == 200  # files are given out meanwhile
    server.release.set()
    first.join()
    assert answers == [200]
    assert ask(server, "POST", "/live/echo", {})[0] == 200


def test_what_an_action_says_reaches_the_page_and_its_bugs_do_not(server):
    status, _, content = ask(server, "POST", "/live/refuse", {})
    assert (status, json.loads(content)) == (422, {"error": "too <long>"})
    status, _, content = ask(server, "POST", "/live/fail", {})
    assert status == 500
    assert b"secret" not in content
    assert ask(server, "POST", "/live/echo", {})[0] == 200  # the lock is free again


def test_a_port_that_is_taken_is_replaced(server, folder):
    echo = {"/live/echo": lambda question: {"got": question}}
    with running(Server(folder, str, echo, server.server_address[1])) as other:
        assert other.server_address[1] != server.server_address[1]
        assert ask(other, "POST", "/live/echo", {"text": "a"})[0] == 200


def test_a_caller_that_hangs_up_or_says_nothing_harms_nobody(server, monkeypatch, capsys):
    monkeypatch.setattr(server.RequestHandlerClass, "timeout", 0.2)
    with socket.create_connection(server.server_address) as silent:
        assert silent.recv(1) == b""  # closed after the timeout
    with socket.create_connection(server.server_address) as hasty:
        hasty.sendall(b"POST /live/echo HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n")
    assert ask(server, "GET", "/")[0] == 200
    assert capsys.readouterr().err == ""


@pytest.mark.slow
def test_live_text_is_what_the_sae_makes_of_the_lms_activations(source, tmp_path):
    one = placed_on(source, make_sae(source))
    result = DashboardEval(port=0).run(one)
    write_pages(result, tmp_path)
    with running(served(result, tmp_path, one)) as server:
        text = "</script>\u2028 me"  # 15 bytes: one context
        answer = json.loads(ask(server, "POST", "/live/text", {"text": text})[2])
        ids = one.lm.tokenizer(text)["input_ids"]
        tokens = torch.tensor([[one.lm.separator_id, *ids]])
        x = one.lm.capture(tokens, [POINT])[POINT]
        f = one.sae.encode(x[0])
        f[~one.counted.mask([x], tokens)[0]] = 0
        found = torch.zeros(len(ids), one.sae.d_sae)
        latents = np.array(answer["latents"], int)[unpack(answer["place"]).astype(int)]
        found[unpack(answer["row"]).astype(int), latents] = torch.tensor(unpack(answer["value"]))
        torch.testing.assert_close(found, f[1:], atol=1e-5, rtol=1e-4)
        assert (found > 0).sum() > 10
        assert unpack(answer["tokens"]).tolist() == ids

        for wrong in ({}, {"text": 3}, {"text": ""}, {"text": "x " * 3000}):
            assert ask(server, "POST", "/live/text", wrong)[0] == 422
        assert ask(server, "POST", "/live/text", {"text": "\ud800\0"})[0] == 200

        effect = json.loads(ask(server, "POST", "/live/ablate", {"latent": "5"})[2])
        DashboardEval(ablate=(5,)).run(one)
        write_pages(DashboardEval().run(one), tmp_path / "again")
        chunk = (tmp_path / "again/data/latents-00000.js").read_text()
        assert all(effect[name] in chunk for name in ("effect", "lowered_ids", "raised_values"))
        for wrong in ({}, {"latent": 5}, {"latent": "47"}, {"latent": "../x"}):
            assert ask(server, "POST", "/live/ablate", wrong)[0] == 422
        page = ask(server, "GET", "/")[2].decode()
        assert f'content="{server.token}"' in page
        assert "connect-src 'self'" in page
        assert "assets/live.js" in page
        assert ask(server, "GET", "/assets/live.js")[0] == 200
    disk = (tmp_path / "index.html").read_text()
    assert "connect-src 'none'" in disk
    assert "live.js" not in disk
    assert 'name="token"' not in disk


SERVE = ["eval=[dashboard]", "eval.dashboard.serve=true"]


@pytest.mark.parametrize(
    ("program", "words"),
    [("train", []), ("train", ["-m", "seed=0,1"]), ("evaluate", ["-m", "run=a,b"])],
)
def test_it_is_for_one_run_of_evaluate(program, words):
    with pytest.raises(ConfigError, match=r"eval\.dashboard\.serve=true is for one run"):
        check_command_line(program, [*words, *SERVE])


def test_it_is_not_for_several_runs():
    config = {"eval": {"dashboard": {"serve": True}}, "export": None, "out": None}
    with pytest.raises(ConfigError, match="run= names 2"):
        check_evaluation(config, ["a", "b"], [], [])


def test_only_the_results_that_ask_for_it_are_served(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(evaluation, "place", lambda run, **_: run)
    monkeypatch.setattr(evaluation, "result_file", lambda folder, result, one: folder / "d.json")
    monkeypatch.setattr(evaluation, "served", lambda *given: given)
    monkeypatch.setattr(evaluation, "run_server", started.append)
    asked, other, silent = (
        EvalResult("dashboard", {}, {}, settings=settings)
        for settings in ({"serve": True}, {"serve": False}, {})
    )
    evaluation.serve("run", {"core": silent, "dashboard": other})
    assert started == []
    evaluation.serve("run", {"core": silent, "dashboard": asked}, out=str(tmp_path))
    assert started == [(asked, tmp_path / "evals" / "d", "run")]


PROGRAM = """
import logging, sys
from pathlib import Path
from sae.reports.dashboard.server import Server, run
logging.basicConfig(level="INFO", format="%(message)s")
run(Server(Path(sys.argv[1]), str, {}, 0))
"""


@pytest.mark.slow
def test_ctrl_c_ends_cleanly(folder):
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert process.stderr.readline().startswith("open http://127.0.0.1:")
        time.sleep(0.3)
        os.kill(process.pid, signal.SIGINT)
        assert len(process.stderr.read().splitlines()) == 1
        assert process.wait(30) == 0
