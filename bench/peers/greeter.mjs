// The greeter in Node: one thread, an event loop.

import { createServer } from "node:net";

const server = createServer({ noDelay: true }, (socket) => {
  let pending = "";
  socket.setEncoding("utf8");
  socket.on("error", () => socket.destroy());
  socket.on("data", (text) => {
    const lines = (pending + text).split("\n");
    pending = lines.pop();
    let replies = "";
    for (const line of lines) {
      if (line === "exit") {
        socket.end(replies);
        return;
      }
      replies += `Hello, ${line}!\n`;
    }
    if (replies) socket.write(replies);
  });
  socket.write("Welcome!\n");
});
server.listen({ host: "127.0.0.1", port: 0, backlog: 1024 }, () => {
  const { address, port } = server.address();
  console.log(`listening on ${address}:${port}`);
});
