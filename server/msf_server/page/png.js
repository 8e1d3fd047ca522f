// What a PNG made here tells of itself: the parameters in its text chunk.

const KEYWORD = "msf:parameters";
const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];

// Of the file's bytes; null if they are no PNG, or one that was made elsewhere.
export function readParameters(bytes) {
  if (!SIGNATURE.every((byte, i) => bytes[i] === byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let at = SIGNATURE.length; at + 8 <= bytes.length;) {
    const length = view.getUint32(at);
    const [type, text] = [latin(bytes.subarray(at + 4, at + 8)), latin(bytes.subarray(at + 8, at + 8 + length))];
    if (type === "tEXt" && text.startsWith(`${KEYWORD}\0`)) return parsed(text.slice(KEYWORD.length + 1));
    at += length + 12; // with length, type and checksum
  }
  return null;
}

const latin = (bytes) => new TextDecoder("latin1").decode(bytes);

function parsed(text) {
  try {
    const found = JSON.parse(text);
    return Number.isInteger(found.seed) && Number.isInteger(found.index) ? found : null;
  } catch {
    return null;
  }
}
