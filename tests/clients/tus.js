// Uploads a file by tus-js-client, going on with what an earlier run has begun. It kills itself when so many bytes
// were sent, if that is asked for. Prints the URL of the upload when it is complete.
//
// tus.js ENDPOINT FILE KEY CHUNK_BYTES URL_STORAGE [--die-after BYTES] [--defer-length]
const fs = require("node:fs");
const { PassThrough } = require("node:stream");
const tus = require("tus-js-client");

const [endpoint, file, key, chunkBytes, storage, ...flags] = process.argv.slice(2);
const after = flags.includes("--die-after") ? Number(flags[flags.indexOf("--die-after") + 1]) : Infinity;

async function main() {
  const stream = fs.createReadStream(file);
  // Of what comes by a pipe nobody knows the length.
  const source = flags.includes("--defer-length") ? stream.pipe(new PassThrough()) : stream;
  const upload = new tus.Upload(source, {
    endpoint,
    chunkSize: Number(chunkBytes),
    metadata: { filename: key, filetype: "video/mp2t", camera: "north" },
    uploadLengthDeferred: flags.includes("--defer-length"),
    uploadSize: flags.includes("--defer-length") ? undefined : fs.statSync(file).size,
    urlStorage: new tus.FileUrlStorage(storage),
    fingerprint: async () => key,
    retryDelays: [0, 100, 200, 400, 800],
    onProgress: (sent) => {
      if (sent >= after) process.kill(process.pid, "SIGKILL");
    },
    onError: (error) => {
      console.error(String(error));
      process.exit(1);
    },
    onSuccess: () => {
      console.log(upload.url);
      process.exit(0);
    },
  });
  const previous = await upload.findPreviousUploads();
  if (previous.length > 0) upload.resumeFromPreviousUpload(previous[0]);
  upload.start();
}

main();
