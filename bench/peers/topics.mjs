// What bench/benches/topics asks of a server, in Node: one thread, a set of sockets for each topic.

import { createServer } from "node:net";

const topics = new Map();

const server = createServer({ noDelay: true }, (socket) => {
  let pending = "";
  socket.setEncoding("utf8");
  socket.on("error", () => socket.destroy());
  socket.on("close", () => topics.forEach((hearers) => hearers.delete(socket)));
  socket.on("data", (text) => {
    const lines = (pending + text).split("\n");
    pending = lines.pop();
    for (const line of lines) {
      const [verb, topic, ...body] = line.split(" ");
      if (verb === "hear") {
        if (!topics.has(topic)) topics.set(topic, new Set());
        topics.get(topic).add(socket);
      } else {
        const message = `${topic}: ${body.join(" ")}\n`;
        topics.get(topic)?.forEach((hearer) => hearer.write(message));
      }
      socket.write("ok\n");
    }
  });
  socket.write("hello\n");
});
server.listen({ host: "127.0.0.1", port: 0, backlog: 1024 }, () => {
  const { address, port } = server.address();
  console.log(`listening on ${address}:${port}`);
});
