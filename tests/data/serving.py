"""A server of files on loopback that fails now and then, by a seed."""

import random
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FAULTS = ("stall", "cut", "corrupt", "refuse")


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
        middle = len(content) // 2
        if fault == "corrupt":
            content = content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :]
        self.wfile.write(content[:middle] if fault in ("cut", "stall") else content)
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
        self._rng, self._share, self._faults = random.Random(seed), share, list(faults)
        self._lock = threading.Lock()

    def next_fault(self):
        with self._lock:
            fault = None
            if self._faults:
                fault = self._faults.pop(0)
            elif self._rng.random() < self._share:
                fault = self._rng.choice(FAULTS)
            if fault:
                self.told.append(fault)
            return fault


@contextmanager
def serving(folder, **options):
    """Yield the address of a server of a folder, and its state."""
    state = State(**options)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Faulty, directory=str(folder), server_state=state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
