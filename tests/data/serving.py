"""Servers of files on loopback that fail now and then, by a seed: one of HTTP, one of S3."""

import logging
import random
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("stall", "cut", "corrupt", "refuse")


def spoiled(content, fault):
    """What is sent of a content before the fault."""
    middle = len(content) // 2
    if fault == "corrupt":
        return content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
    return content[:middle] if fault in ("cut", "stall") else content


class Faulty(SimpleHTTPRequestHandler):
    """Serves a folder; of the requests for tar files, a share is stalled, cut, corrupted or refused."""

    def __init__(self, *arguments, server_state, **options):
        self.state = server_state
        super().__init__(*arguments, **options)

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        self.state.requests.append(path.name)
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        fault = self.state.next_fault() if path.suffix == ".tar" else None
        if fault == "refuse":
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(spoiled(content, fault))
        if fault == "stall":
            self.wfile.flush()
            time.sleep(self.state.stall)
        self.close_connection = fault is not None

    def log_message(self, *_):
        pass


class State:
    """What a server was asked, and how it fails."""

    def __init__(self, share=0.0, seed=0, stall=2.0, faults=()):
        self.requests, self.told = [], []
        self.stall = stall
        self._share, self._faults = share, list(faults)
        self._rngs = defaultdict(lambda: random.Random(seed))  # of each kind of requests
        self._lock = threading.Lock()

    def next_fault(self, kinds=FAULTS):
        with self._lock:
            fault = None
            if self._faults:
                fault = self._faults.pop(0) if self._faults[0] in kinds else None
            elif self._rngs[kinds].random() < self._share:
                fault = self._rngs[kinds].choice(kinds)
            if fault:
                self.told.append(fault)
            return fault


@contextmanager
def in_background(server):
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def serving(folder, **options):
    """Yield the address of a server of a folder, and its state."""
    state = State(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Faulty, directory=str(folder), server_state=state))
    with in_background(server):
        yield f"http://127.0.0.1:{server.server_address[1]}", state


class FaultyBuckets:
    """moto's S3, of whose answers about tar files a share is stalled, cut, corrupted or refused."""

    def __init__(self, state):
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._state = state
        self._whole = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ, start_response):
        from werkzeug.test import run_wsgi_app

        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        body, status, headers = run_wsgi_app(self._whole, environ)
        content, fault = b"".join(body), None
        if method in ("GET", "HEAD") and path.endswith(".tar"):
            self._state.requests.append(f"{method} {path}")
            fault = self._state.next_fault(FAULTS if method == "GET" else ("refuse",))
        if fault == "refuse":
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        start_response(status, list(headers))
        return self._sent(content, fault)

    def _sent(self, content, fault):
        yield spoiled(content, fault)
        if fault == "stall":
            time.sleep(self._state.stall)


@contextmanager
def serving_buckets(folder, bucket, **options):
    """Yield the environment that leads to a server with a folder's files in a bucket, and the server's state."""
    import s3fs
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel("CRITICAL")  # it tells of each request
    state = State(**options)
    server = make_server("127.0.0.1", 0, FaultyBuckets(state), threaded=True)
    address = f"http://127.0.0.1:{server.server_address[1]}"
    with in_background(server):
        system = s3fs.S3FileSystem(endpoint_url=address, key="key", secret="secret", skip_instance_cache=True)
        system.mkdir(bucket)
        for path in folder.iterdir():
            if path.is_file():
                system.pipe(f"{bucket}/{path.name}", path.read_bytes())
        yield (
            {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": "key",
                "AWS_SECRET_ACCESS_KEY": "secret",
                "AWS_DEFAULT_REGION": "us-east-1",
            },
            state,
        )
