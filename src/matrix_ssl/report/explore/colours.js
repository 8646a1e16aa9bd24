// Colours of the points: those of the style sheet, so that they follow light and dark mode.

const HUES = 24;
const CLASSES = 10;
const STEPS = 64; // colours of a range of numbers
const RAMP = 6;

const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

// A colour of the style sheet as red, green, blue and opacity between 0 and 1.
function rgba(name) {
  probe.canvas.width = probe.canvas.height = 1;
  probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`);
  probe.fillRect(0, 0, 1, 1);
  return [...probe.getImageData(0, 0, 1, 1).data].map((part) => part / 255);
}

// How a column colours the map: the colour of every image, the colours, and the entries of the legend.
function appearance(column) {
  return column.codes ? ofCategories(column) : ofNumbers(column);
}

function countsOf(column) {
  const counts = new Array(column.values.length).fill(0);
  for (const code of column.codes) if (code >= 0) counts[code]++;
  return counts;
}

function ofCategories(column) {
  const counts = countsOf(column);
  const names = column.values.length <= CLASSES
    ? column.values.map((_, code) => `class-${code}`)
    : column.values.map((_, code) => `hue-${code}`);
  const grey = names.length > HUES ? HUES - 1 : names.length; // the position of the colour of all others
  const common = [...counts.keys()].sort((a, b) => counts[b] - counts[a]);
  const position = new Array(names.length).fill(grey);
  (names.length > HUES ? common.slice(0, grey) : [...counts.keys()]).forEach((code, at) => { position[code] = at; });
  const used = [...names.slice(0, grey), "soft"];
  const codes = Float32Array.from(column.codes, (code) => (code < 0 ? grey : position[code]));
  const entries = common.filter((code) => counts[code])
    .map((code) => ({ code, text: column.values[code], count: counts[code], colour: used[position[code]] }));
  const without = COUNT - counts.reduce((sum, count) => sum + count, 0);
  if (without) entries.push({ code: -1, text: "none", count: without, colour: "soft" });
  return { codes, colours: used.map(rgba), entries };
}

function ofNumbers(column) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of column.numbers) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const width = high - low || 1;
  const codes = Float32Array.from(column.numbers,
    (value) => (Number.isNaN(value) ? STEPS : Math.round((value - low) / width * (STEPS - 1))));
  const ramp = Array.from({ length: RAMP }, (_, i) => rgba(`ramp-${i}`));
  const colours = Array.from({ length: STEPS }, (_, step) => {
    const at = step / (STEPS - 1) * (RAMP - 1);
    const from = Math.min(Math.floor(at), RAMP - 2);
    return ramp[from].map((part, i) => part + (ramp[from + 1][i] - part) * (at - from));
  });
  return { codes, colours: [...colours, rgba("soft")], range: [low, high] };
}
