"""The greeter as the tutorial has it, without its sleep: a thread for each connection, and a message
is what one recv returned. So it is no use to a client that sends ahead."""

import socket
import threading


def serve(connection):
    with connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(b"Welcome!\n")
        while message := connection.recv(1024):
            name = message.decode().strip()
            if name == "exit":
                break
            connection.sendall(f"Hello, {name}!\n".encode())


listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
host, port = listener.getsockname()
print(f"listening on {host}:{port}", flush=True)
while True:
    connection, _ = listener.accept()
    threading.Thread(target=serve, args=[connection], daemon=True).start()
