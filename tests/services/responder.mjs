// A responder: it answers each request on the subject of its argument, and drains on SIGTERM.
//
// `connection.mjs` beside this file is code of docs/clients.md.

import process from "node:process";
import { nc } from "./connection.mjs";

nc.subscribe(process.argv[2], {
  queue: "responders",
  callback: (_error, message) => message.respond(`javascript ${process.pid}`),
});
await nc.flush();
process.on("SIGTERM", () => nc.drain());
console.log("ready");
await nc.closed();
