// The data of the page: text, and arrays as bytes in base64.

const KINDS = { "<f8": Float64Array, "<f4": Float32Array, "<i4": Int32Array, "<i2": Int16Array };

function decode({ kind, bytes }) {
  const text = atob(bytes);
  const content = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) content[i] = text.charCodeAt(i);
  return new KINDS[kind](content.buffer);
}

const data = JSON.parse(document.getElementById("data").textContent);
const points = decode(data.points); // x and y of an image after those of the one before
const neighbours = decode(data.neighbours.images);
const similarities = decode(data.neighbours.similarities);
const outliers = decode(data.outliers.images);
const scores = decode(data.outliers.scores);
const columns = data.columns.map((one) => ({
  name: one.name,
  values: one.values,
  codes: one.codes && decode(one.codes),
  numbers: one.numbers && decode(one.numbers),
}));
const COUNT = data.places.ends.length;
const clusters = columns[data.labelled ? 1 : 0];
const duplicateOf = new Int32Array(COUNT).fill(-1); // the group of every image
data.duplicates.forEach((group, number) => group.forEach((image) => { duplicateOf[image] = number; }));

const whole = (value) => value.toLocaleString("en");
const place = (image) => data.places.start + data.places.ends[image];
const imagesOf = (column, code) => allWhere((image) => column.codes[image] === code);

function neighboursOf(image) {
  const { count } = data.neighbours;
  return [...neighbours.subarray(image * count, (image + 1) * count)];
}

function allWhere(holds) {
  const result = [];
  for (let image = 0; image < COUNT; image++) if (holds(image)) result.push(image);
  return result;
}

// Control characters, and those that change the direction of writing, as escapes: a name must not look like another.
function shown(text) {
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/gu,
    (letter) => "\\u" + letter.charCodeAt(0).toString(16).padStart(4, "0"));
}

// The names of the folders of an image, and of its file; on Windows both slashes separate.
function parts(image) {
  return data.places.ends[image].split(data.places.separator === "/" ? "/" : /[/\\]/);
}

function fileName(image) {
  return shown(parts(image).pop() || place(image));
}

// The pieces of a text, of which every second is a byte: a lone surrogate stands for one of a name that is not Unicode.
const pieces = (text) => text.split(/([\udc80-\udcff])/u);
const byteOf = (letter) => letter.charCodeAt(0) - 0xdc00;

// A number for readers: whole ones as they are, others with four significant digits.
const short = (value) => String(Number.isInteger(value) ? value : Number(value.toPrecision(4)));

// What a column says about an image; empty for nothing.
function valueOf(column, image, text = short) {
  if (column.codes) return column.codes[image] < 0 ? "" : column.values[column.codes[image]];
  const value = column.numbers[image];
  return Number.isNaN(value) ? "" : text(value);
}

// The same with all digits that there are, for programs.
function exactValueOf(column, image) {
  const single = column.numbers instanceof Float32Array;
  return valueOf(column, image, (value) => String(single ? Number(value.toPrecision(8)) : value));
}
