"""Serve a folder to this machine alone, with the headers that let its page use threads: ``serve.py [FOLDER]``."""

import argparse
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

FOLDER = Path(__file__).parent / "dist"


class Handler(SimpleHTTPRequestHandler):
    """Python's file server with headers of its own.

    Threads of WebAssembly share memory, which browsers allow to pages that are isolated from other origins.
    """

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def end_headers(self) -> None:
        """Add the headers: isolation, and that a file may have changed since it was fetched."""
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Tell of errors alone."""
        if not (args and str(args[-2 if len(args) > 2 else -1]).startswith(("2", "3"))):
            super().log_message(format, *args)


def make_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Make a server of a folder on localhost; port 0 takes a free one.

    Raises:
        FileNotFoundError: if the folder has no page.
        OSError: if the port is taken.
    """
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"{folder} has no index.html; build.py writes it")
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), partial(Handler, directory=str(folder)))
    except OSError as error:
        raise OSError(f"port {port} cannot be used: {error.strerror}; give another with --port") from error


def main() -> int:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Serve the page to this machine alone.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER, help="what build.py wrote (default dist)")
    parser.add_argument("--port", type=int, default=8000, help="where to listen (default 8000; 0: a free one)")
    args = parser.parse_args()
    try:
        server = make_server(args.folder, args.port)
    except OSError as error:
        print(f"serve.py: error: {error}", file=sys.stderr)
        return 2
    print(f"http://localhost:{server.server_address[1]}/ (Ctrl+C stops)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
