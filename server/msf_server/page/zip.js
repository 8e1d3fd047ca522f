// ZIP archives of files that are compressed already: stored, not deflated.

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, index) => {
  let value = index;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value;
});
const VERSION = 20; // of the format: 2.0
const UTF8_NAMES = 0x0800;
const NO_DATE = 0x21; // 1 January 1980, the earliest that the format can say

function crc32(bytes) {
  let value = 0xffffffff;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

// Pack little-endian fields, each [value, number of bytes].
function pack(fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let offset = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(offset, value, true);
    else view.setUint32(offset, value, true);
    offset += size;
  }
  return new Uint8Array(view.buffer);
}

// Return the archive of `entries`, each { name, bytes }.
export function zip(entries) {
  const contents = [];
  const directory = [];
  let offset = 0;
  for (const { name, bytes } of entries) {
    const encodedName = new TextEncoder().encode(name);
    const common = [
      [VERSION, 2], [UTF8_NAMES, 2], [0, 2], [0, 2], [NO_DATE, 2], [crc32(bytes), 4], [bytes.length, 4], [bytes.length, 4],
      [encodedName.length, 2], [0, 2],
    ];
    const header = pack([[0x04034b50, 4], ...common]);
    directory.push(pack([[0x02014b50, 4], [VERSION, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]]), encodedName);
    contents.push(header, encodedName, bytes);
    offset += header.length + encodedName.length + bytes.length;
  }
  const directorySize = directory.reduce((sum, part) => sum + part.length, 0);
  const count = entries.length;
  const end = pack([[0x06054b50, 4], [0, 2], [0, 2], [count, 2], [count, 2], [directorySize, 4], [offset, 4], [0, 2]]);
  return new Blob([...contents, ...directory, end], { type: "application/zip" });
}
