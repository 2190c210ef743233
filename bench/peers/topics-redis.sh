# A Redis for bench/benches/topics, at a port that is free now: it takes none of the system's choice.
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
(
    until redis-cli -p "$port" ping >/dev/null 2>&1; do sleep 0.05; done
    echo "listening on 127.0.0.1:$port"
) &
exec redis-server --port "$port" --bind 127.0.0.1 --save "" --maxclients 20000 --loglevel warning >/dev/null
