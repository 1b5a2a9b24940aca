"""A server with OpenAI's API on this machine, with a script of mishaps, and a scripted LM."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sae.chat.messages import Failure, Reply

KEY = "sk-very-secret-0123456789"


def completion(text, prompt=10, written=3, **more):
    """The body of a good answer."""
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"} | more
    usage = {"prompt_tokens": prompt, "completion_tokens": written}
    return json.dumps({"choices": [choice], "usage": usage}).encode()


TRICKLES = {
    "slow headers": b"HTTP/1.1 200 OK\r\nX-Slow: ",
    "slow body": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
}
"""Beginnings of replies of which a sign follows every now and then, and no end."""


class Handler(BaseHTTPRequestHandler):
    """Answers by `respond(body)` or `answer(messages)` of the server, after its mishaps."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            mishap = server.script.pop(0) if server.script else None
            server.seen.append((self.path, self.headers.get("Authorization"), body))
        if mishap == "close":
            self.close_connection = True
        elif mishap == "stall":
            server.woken.wait(10)
            self.close_connection = True
        elif mishap == "half":
            self._send(200, completion("half")[:40], length=4000)
            self.close_connection = True
        elif isinstance(mishap, str):
            self.close_connection = True
            self.wfile.write(TRICKLES[mishap])
            for _ in range(100):
                self.wfile.write(b"0")
                if server.woken.wait(0.05):
                    break
        elif mishap is not None:
            self._send(*mishap)
        else:
            respond = server.respond or (lambda body: server.answer(body["messages"]))
            text = respond(body)
            with server.lock:
                server.paid[json.dumps(body, sort_keys=True)] += 1
            self._send(200, text if isinstance(text, bytes) else completion(text))

    def _send(self, status, body, headers=(), length=None):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def serving(answer=lambda messages: "fine", script=()):
    """Serve; `.url`, `.seen` (all requests) and `.paid` (answered ones) tell what happened."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.handle_error = lambda *_: None  # a client that was killed
    server.answer, server.script, server.respond = answer, list(script), None
    server.seen, server.paid, server.lock = [], Counter(), threading.Lock()
    server.woken = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.woken.set()
        server.shutdown()
        server.server_close()
        thread.join()


class Scripted:
    """A client whose replies a function decides; an exception that it returns is raised."""

    def __init__(self, answer, concurrency=1, pause=0.0):
        self.identity, self.concurrency = {"base_url": "scripted", "model": "scripted"}, concurrency
        self.answer, self.pause, self.asked, self.lock = answer, pause, [], threading.Lock()

    def reply(self, request):
        with self.lock:
            self.asked.append(request)
        time.sleep(self.pause)
        found = self.answer(request)
        if isinstance(found, Failure):
            raise found
        return found if isinstance(found, Reply) else Reply(found, 10, 3)

    def session(self):
        return nullcontext()

    def stop(self):
        pass
