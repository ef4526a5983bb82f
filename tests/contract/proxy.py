"""A TCP proxy on loopback that cuts connections, or lets them live and says nothing."""

import selectors
import socket
import threading
import time


class Proxy:
    """Forward to one port.

    Set `silent` to True: bytes from the server are swallowed and connections stay up, as behind a firewall that forgot.
    A connection that lost bytes so stays mute after `silent` is taken back; a new one is not.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.silent = False
        self.refusing = False
        """Break every connection as it is made; `cut` breaks those that there are."""
        self.delay_s = 0.0
        """How long what the server says is held back, on every connection."""
        self.accepted = 0
        self.cuts: list[int] = []
        """Cut the next connections once they carried so many bytes from the server."""
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._closing = False
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection that there is."""
        for pair in self._pairs:
            for sock in pair:
                _shut(sock)

    def close(self) -> None:
        self._closing = True
        # A thread that waits in accept does not notice that its socket is closed.
        socket.create_connection(("127.0.0.1", self.port)).close()
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._closing:
                client.close()
                return
            self.accepted += 1
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            self._pairs.append((client, server))
            if self.refusing:
                # Asked after it was noted: a cut that came before did not see it.
                self.cut()
            cut_after = self.cuts.pop(0) if self.cuts else None
            thread = threading.Thread(target=self._pump, args=(client, server, cut_after))
            self._threads.append(thread)
            thread.start()

    def _pump(self, client: socket.socket, server: socket.socket, cut_after: int | None) -> None:
        carried, lossy = 0, False
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            try:
                while True:
                    for key, _ in selector.select():
                        assert isinstance(key.fileobj, socket.socket)
                        data = key.fileobj.recv(65536)
                        if not data:
                            return
                        if key.fileobj is server:
                            # A stream has no holes: what lost bytes once carries none again, until it is cut.
                            lossy = lossy or self.silent
                            if lossy:
                                continue
                            carried += len(data)
                            if self.delay_s:
                                time.sleep(self.delay_s)
                        key.data.sendall(data)
                        if cut_after is not None and carried > cut_after:
                            return
            except OSError:
                return
            finally:
                _shut(client)
                _shut(server)
                client.close()
                server.close()


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # closed already
