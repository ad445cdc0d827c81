"""A small xend for xm's tests: it answers on a unix socket as each test says, and remembers what it was asked."""
import http.server
import json
import os
import pathlib
import socketserver
import subprocess
import sys
import threading

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))

XM = os.environ.get("XM", str(pathlib.Path(__file__).parents[2] / "build/src/xm/xm"))

HOST = {"name": "Domain-0", "id": 0, "uuid": "00000000-0000-0000-0000-000000000000", "memory_mib": 511, "vcpus": 2,
        "state": "r-----", "cpu_time_s": 1306.0, "started_at": 0, "config": {}}
GUEST = {"name": "TestGuest", "id": 1, "uuid": "cc0029f5-10a1-e6d0-3c92-19b0ea021f21", "memory_mib": 63, "vcpus": 1,
         "state": "-b----", "cpu_time_s": 4.5, "started_at": 1200000000,
         "config": {"name": "TestGuest", "memory": 63, "uuid": "cc0029f5-10a1-e6d0-3c92-19b0ea021f21",
                    "kernel": "/boot/vmlinuz", "root": "/dev/xvda ro",
                    "disk": ["phy:/dev/vg/guest,xvda,w"], "vif": ["mac=00:16:3e:55:9d:b0, bridge=xenbr0"]}}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def address_string(self):
        return "unix"

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):
            self.server.xend.client_left.set()
            self.close_connection = True

    def answer(self):
        xend = self.server.xend
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "json" in self.headers.get("Content-Type", "") and body:
            body = json.loads(body)
        self.body = body
        xend.asked.append((self.command, self.path, body))
        route = xend.routes.get((self.command, self.path))
        if route is None:
            name = self.path.split("/")[2] if self.path.count("/") > 1 else self.path
            route = (404, {"error": f"Domain '{name}' does not exist."})
        if callable(route):
            route(self)
        else:
            self.json(*route)

    do_GET = do_POST = answer

    def json(self, status, value):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def begin(self, content_type="application/x-ndjson"):
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def chunk(self, data):
        data = data if isinstance(data, bytes) else json.dumps(data).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def end(self):
        self.wfile.write(b"0\r\n\r\n")

    def cut(self):
        """Closes the connection in the middle of the answer."""
        self.wfile.flush()
        self.close_connection = True


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class FakeXend:
    def __init__(self, directory):
        self.directory = directory
        self.socket = str(directory / "socket")
        self.asked = []
        self.client_left = threading.Event()
        self.routes = {("GET", "/domains"): (200, {"domains": [HOST, GUEST]})}
        for name in ("TestGuest", "1"):
            self.routes["GET", f"/domains/{name}"] = (200, GUEST)
        for name in ("Domain-0", "0"):
            self.routes["GET", f"/domains/{name}"] = (200, HOST)
        self.server = Server(self.socket, Handler)
        self.server.xend = self
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def job(self, path, *events, cut=False):
        """A job stream with these events."""
        def route(handler):
            handler.begin()
            for event in events:
                handler.chunk(event)
            handler.cut() if cut else handler.end()
        self.routes["POST", path] = route

    def environment(self):
        return dict(os.environ, XEND_SOCKET=self.socket, http_proxy="http://127.0.0.1:1/", LC_ALL="C")

    def xm(self, *words, stdin=subprocess.DEVNULL, **options):
        """Runs xm; gives exit status, standard output, standard error."""
        done = subprocess.run([XM, *words], stdin=stdin if not isinstance(stdin, bytes) else None,
                              input=stdin if isinstance(stdin, bytes) else None,
                              env=self.environment(), cwd=self.directory, capture_output=True, timeout=120, **options)
        return done.returncode, done.stdout.decode(), done.stderr.decode()

    def spawn(self, *words, **options):
        return subprocess.Popen([XM, *words], env=self.environment(), cwd=self.directory, **options)


@pytest.fixture
def xend(tmp_path):
    fake = FakeXend(tmp_path)
    yield fake
    fake.close()
