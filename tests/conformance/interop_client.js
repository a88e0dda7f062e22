// grpc's interop cases with @grpc/grpc-js. Reads lines {"case", "port"} from stdin and
// answers each with one line {"case", "error"?}. Usage: node interop_client.js NODE_MODULES PROTO
"use strict";

const assert = require("node:assert/strict");
const path = require("node:path");
const readline = require("node:readline");

const [modules, proto] = process.argv.slice(2);
const grpc = require(path.join(modules, "@grpc/grpc-js"));
const loader = require(path.join(modules, "@grpc/proto-loader"));

const testing = grpc.loadPackageDefinition(loader.loadSync(proto, { keepCase: true })).grpc.testing;
const REQUEST_BYTES = 271828;
const RESPONSE_BYTES = 314159;
const STREAM_REQUEST_BYTES = [27182, 8, 1828, 45904];
const STREAM_RESPONSE_BYTES = [31415, 9, 2653, 58979];
const SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n";
const INITIAL = "x-grpc-test-echo-initial";
const TRAILING = "x-grpc-test-echo-trailing-bin";
const NO_COMPRESS = "2"; // WriteFlags.NoCompress, which the package does not export
const GZIP = { "grpc.default_compression_algorithm": grpc.compressionAlgorithms.gzip };

function withClient(port, body, options = {}, service = testing.TestService) {
  const client = new service(`127.0.0.1:${port}`, grpc.credentials.createInsecure(), options);
  return body(client).finally(() => client.close());
}

// One unary or client-streaming call: {error, response, initial, status}; `send` feeds a stream.
function answered(start, send = () => {}) {
  return new Promise((resolve) => {
    const seen = {};
    const done = () => {
      if ("response" in seen && "status" in seen) resolve(seen);
    };
    const call = start((error, response) => {
      Object.assign(seen, { error, response });
      done();
    });
    call.on("metadata", (initial) => (seen.initial = initial));
    call.on("status", (status) => {
      seen.status = status;
      done();
    });
    send(call);
  });
}

// One call whose responses stream: {responses, initial, status}; `each` sees (call, count).
function streamed(call, each = () => {}) {
  return new Promise((resolve) => {
    const seen = { responses: [] };
    call.on("metadata", (initial) => (seen.initial = initial));
    call.on("data", (response) => {
      seen.responses.push(response);
      each(call, seen.responses.length);
    });
    call.on("error", () => {}); // the status tells the same
    call.on("status", (status) => resolve({ ...seen, status }));
  });
}

const payload = (size) => ({ body: Buffer.alloc(size) });
const large = (fields = {}) => ({
  response_size: RESPONSE_BYTES,
  payload: payload(REQUEST_BYTES),
  ...fields,
});
const duplexRequest = (response, request) => ({
  response_parameters: [{ size: response }],
  payload: payload(request),
});
const sizes = (seen) => seen.responses.map((response) => response.payload.body.length);

function assertLarge(seen) {
  assert.equal(seen.error, null);
  assert.ok(seen.response.payload.body.equals(Buffer.alloc(RESPONSE_BYTES)));
}

function echoed() {
  const metadata = new grpc.Metadata();
  metadata.set(INITIAL, "test_initial_metadata_value");
  metadata.set(TRAILING, Buffer.from([0xab, 0xab, 0xab]));
  return metadata;
}

function assertEchoed(seen) {
  assert.equal(seen.status.code, grpc.status.OK);
  assert.deepEqual(seen.initial.get(INITIAL), ["test_initial_metadata_value"]);
  assert.deepEqual(seen.status.metadata.get(TRAILING), [Buffer.from([0xab, 0xab, 0xab])]);
}

async function statusCase(port, message) {
  const response_status = { code: 2, message };
  await withClient(port, async (client) => {
    const unary = await answered((done) => client.UnaryCall({ response_status }, done));
    const call = client.FullDuplexCall();
    const duplex = streamed(call);
    call.write({ response_status });
    call.end();
    for (const seen of [unary, await duplex]) {
      assert.equal(seen.status.code, grpc.status.UNKNOWN);
      assert.equal(seen.status.details, message);
    }
  });
}

const cases = {
  empty_unary: ({ port }) =>
    withClient(port, async (client) => {
      const seen = await answered((done) => client.EmptyCall({}, done));
      assert.equal(seen.error, null);
      assert.ok(seen.response);
    }),

  large_unary: ({ port }) =>
    withClient(port, async (client) =>
      assertLarge(await answered((done) => client.UnaryCall(large(), done))),
    ),

  async client_compressed_unary({ port }) {
    const compressed = large({ expect_compressed: { value: true } });
    await withClient(port, async (client) => {
      const seen = await answered((done) => client.UnaryCall(compressed, done));
      assert.equal(seen.status.code, grpc.status.INVALID_ARGUMENT);
    });
    await withClient(
      port,
      async (client) => assertLarge(await answered((done) => client.UnaryCall(compressed, done))),
      GZIP,
    );
    const plain = large({ expect_compressed: { value: false } });
    await withClient(port, async (client) =>
      assertLarge(await answered((done) => client.UnaryCall(plain, done))),
    );
  },

  server_compressed_unary: ({ port }) =>
    withClient(port, async (client) => {
      for (const value of [true, false]) {
        const request = large({ response_compressed: { value } });
        assertLarge(await answered((done) => client.UnaryCall(request, done)));
      }
    }),

  client_streaming: ({ port }) =>
    withClient(port, async (client) => {
      const seen = await answered(
        (done) => client.StreamingInputCall(done),
        (call) => {
          for (const size of STREAM_REQUEST_BYTES) call.write({ payload: payload(size) });
          call.end();
        },
      );
      assert.equal(seen.error, null);
      assert.equal(seen.response.aggregated_payload_size, 74922);
    }),

  async client_compressed_streaming({ port }) {
    const compressed = { payload: payload(27182), expect_compressed: { value: true } };
    const plain = { payload: payload(45904), expect_compressed: { value: false } };
    await withClient(port, async (client) => {
      const seen = await answered(
        (done) => client.StreamingInputCall(done),
        (call) => call.end(compressed),
      );
      assert.equal(seen.status.code, grpc.status.INVALID_ARGUMENT);
    });
    await withClient(
      port,
      async (client) => {
        const seen = await answered(
          (done) => client.StreamingInputCall(done),
          (call) => {
            // A message's flags travel as its "encoding", which Node's own write() would refuse.
            call._write(compressed, "0", () =>
              call._write(plain, NO_COMPRESS, () => call.end()),
            );
          },
        );
        assert.equal(seen.error, null);
        assert.equal(seen.response.aggregated_payload_size, 73086);
      },
      GZIP,
    );
  },

  server_streaming: ({ port }) =>
    withClient(port, async (client) => {
      const response_parameters = STREAM_RESPONSE_BYTES.map((size) => ({ size }));
      const seen = await streamed(client.StreamingOutputCall({ response_parameters }));
      assert.equal(seen.status.code, grpc.status.OK);
      assert.deepEqual(sizes(seen), STREAM_RESPONSE_BYTES);
    }),

  server_compressed_streaming: ({ port }) =>
    withClient(port, async (client) => {
      const response_parameters = [
        { size: 31415, compressed: { value: true } },
        { size: 92653, compressed: { value: false } },
      ];
      const seen = await streamed(client.StreamingOutputCall({ response_parameters }));
      assert.equal(seen.status.code, grpc.status.OK);
      assert.deepEqual(sizes(seen), [31415, 92653]);
    }),

  ping_pong: ({ port }) =>
    withClient(port, async (client) => {
      const call = client.FullDuplexCall();
      const send = (index) =>
        index < STREAM_REQUEST_BYTES.length
          ? call.write(duplexRequest(STREAM_RESPONSE_BYTES[index], STREAM_REQUEST_BYTES[index]))
          : call.end();
      send(0);
      const seen = await streamed(call, (_, count) => send(count));
      assert.equal(seen.status.code, grpc.status.OK);
      assert.deepEqual(sizes(seen), STREAM_RESPONSE_BYTES);
    }),

  empty_stream: ({ port }) =>
    withClient(port, async (client) => {
      const call = client.FullDuplexCall();
      call.end();
      const seen = await streamed(call);
      assert.equal(seen.status.code, grpc.status.OK);
      assert.deepEqual(seen.responses, []);
    }),

  custom_metadata: ({ port }) =>
    withClient(port, async (client) => {
      assertEchoed(await answered((done) => client.UnaryCall(large(), echoed(), done)));
      const call = client.FullDuplexCall(echoed());
      call.end(duplexRequest(RESPONSE_BYTES, REQUEST_BYTES));
      const seen = await streamed(call);
      assertEchoed(seen);
      assert.deepEqual(sizes(seen), [RESPONSE_BYTES]);
    }),

  status_code_and_message: ({ port }) => statusCase(port, "test status message"),
  special_status_message: ({ port }) => statusCase(port, SPECIAL),

  unimplemented_method: ({ port }) =>
    withClient(port, async (client) => {
      const seen = await answered((done) => client.UnimplementedCall({}, done));
      assert.equal(seen.status.code, grpc.status.UNIMPLEMENTED);
    }),

  unimplemented_service: ({ port }) =>
    withClient(
      port,
      async (client) => {
        const seen = await answered((done) => client.UnimplementedCall({}, done));
        assert.equal(seen.status.code, grpc.status.UNIMPLEMENTED);
      },
      {},
      testing.UnimplementedService,
    ),

  cancel_after_begin: ({ port }) =>
    withClient(port, async (client) => {
      const seen = await answered(
        (done) => client.StreamingInputCall(done),
        (call) => call.cancel(),
      );
      assert.equal(seen.status.code, grpc.status.CANCELLED);
    }),

  cancel_after_first_response: ({ port }) =>
    withClient(port, async (client) => {
      const call = client.FullDuplexCall();
      call.write(duplexRequest(31415, 27182));
      const seen = await streamed(call, () => call.cancel());
      assert.equal(seen.status.code, grpc.status.CANCELLED);
      assert.deepEqual(sizes(seen), [31415]);
    }),

  timeout_on_sleeping_server: ({ port }) =>
    withClient(port, async (client) => {
      for (const timeout_ms of [1, 200]) {
        const call = client.FullDuplexCall({ deadline: Date.now() + timeout_ms });
        call.write({ payload: payload(27182) });
        const seen = await streamed(call);
        assert.equal(seen.status.code, grpc.status.DEADLINE_EXCEEDED);
      }
    }),

  // Not of grpc's list: metadata that is new in every call, which nghttp2 would index.
  fresh_metadata: ({ port }) =>
    withClient(port, async (client) => {
      for (let at = 0; at < 60; at += 1) {
        const metadata = new grpc.Metadata();
        metadata.set("traceparent", `00-${String(at).padStart(32, "0")}-00f067aa0ba902b7-01`);
        metadata.set(INITIAL, `call ${at}`);
        const seen = await answered((done) => client.UnaryCall(large(), metadata, done));
        assertLarge(seen);
        assert.deepEqual(seen.initial.get(INITIAL), [`call ${at}`]);
      }
    }),

  concurrent_large_unary: ({ port }) =>
    withClient(port, async (client) => {
      const calls = Array.from({ length: 100 }, () =>
        answered((done) => client.UnaryCall(large(), done)),
      );
      for (const seen of await Promise.all(calls)) assertLarge(seen);
    }),
};

async function main() {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const reply = { case: request.case };
    try {
      await cases[request.case](request);
    } catch (error) {
      reply.error = error.stack;
    }
    process.stdout.write(JSON.stringify(reply) + "\n");
  }
}

main();
