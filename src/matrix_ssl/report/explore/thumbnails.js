// Elements, thumbnails and grids of them.

const { side, across, each, sheets } = data.thumbnails;
const FIRST = 48; // thumbnails of a grid before the reader asks for more

// An element with attributes; texts among the children are shown as text.
function element(name, attributes, ...children) {
  const result = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "click") result.addEventListener("click", value);
    else if (value !== null && value !== false) result.setAttribute(key, value === true ? "" : value);
  }
  result.append(...children);
  return result;
}

// The name of a file, which may break into lines after the marks in it.
function breakable(name) {
  return name.split(/(?<=[_.-])/).flatMap((part) => [part, element("wbr", {})]);
}

// The thumbnail of an image, of so many pixels on the screen.
function thumbnail(image, size) {
  const at = image % each;
  const result = element("span", { class: side < 64 ? "thumbnail pixelated" : "thumbnail", "aria-hidden": "true" });
  Object.assign(result.style, {
    width: `${size}px`, height: `${size}px`,
    backgroundImage: `url("${sheets[Math.floor(image / each)]}")`, backgroundSize: `${across * size}px auto`,
    backgroundPosition: `${-(at % across) * size}px ${-Math.floor(at / across) * size}px`,
  });
  return result;
}

function caption(column, image) {
  const value = valueOf(column, image);
  return value === "" ? "" : `${shown(column.name)} ${shown(value)}`;
}

// A list of thumbnails that are buttons. lines(image): texts below the thumbnail, after the name of its file.
function grid(images, lines, label, size = 76, first = FIRST) {
  const list = element("ul", { class: "grid", "aria-label": label });
  list.style.setProperty("--size", `${size}px`);
  const more = element("button", { class: "more", click: () => add(4 * FIRST) });
  let count = 0;
  function add(most) {
    const next = images.slice(count, count + most);
    count += next.length;
    list.append(...next.map((image) => {
      const texts = lines(image).filter(Boolean);
      return element("li", {}, element("button", {
        class: "cell", "data-image": image, title: shown(place(image)),
        "aria-label": [fileName(image), ...texts].join(", "),
      }, thumbnail(image, size), element("span", { class: "name" }, ...breakable(fileName(image))),
      ...texts.map((text) => element("span", {}, text))));
    }));
    more.textContent = `Show more: ${whole(count)} of ${whole(images.length)}`;
    more.hidden = count >= images.length;
  }
  add(first);
  return element("div", {}, list, more);
}

function download(name, text, type) {
  const content = pieces(text).map((piece, at) => (at % 2 ? Uint8Array.of(byteOf(piece)) : piece));
  const link = element("a", { href: URL.createObjectURL(new Blob(content, { type })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csvField(text) {
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// A line of a list of images; text of JSON where a line cannot hold the path as it is, as matrix-ssl select reads it.
function line(path) {
  const isPlain = !/^[\s\x1c-\x1f\x85"]|^\.\/|[\r\n]|[\s\x1c-\x1f\x85]$/.test(path) && pieces(path).length === 1;
  return `${isPlain ? path : JSON.stringify(path)}\n`;
}

// A CSV file of images with all columns.
function table(images) {
  const header = ["path", ...columns.map((column) => column.name)];
  const rows = images.map((image) => [place(image), ...columns.map((column) => exactValueOf(column, image))]);
  return [header, ...rows].map((row) => row.map(csvField).join(",") + "\n").join("");
}
