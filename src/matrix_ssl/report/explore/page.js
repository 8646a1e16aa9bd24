// The state of the page, what changes it, and what follows from a change.

const state = { column: 0, image: -1, selection: [], only: new Set(), list: "selection" };
const byId = (id) => document.getElementById(id);
const legend = byId("legend");
const say = (text) => { byId("status").textContent = text; };
const DIRECTIONS = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const LISTS = [...document.querySelectorAll("[role=tab]")].map((tab) => tab.id.slice("tab-".length));
let map = null;
let drawn = Promise.resolve(); // the last drawing: the library leaves out one that begins before it has ended

const actions = {
  // Shows an image and its neighbours, on the map too.
  choose(image) {
    state.image = image;
    card(byId("image"), image);
    map?.select([image, ...neighboursOf(image)]);
    say([fileName(image), ...columns.map((column) => caption(column, image))].filter(Boolean).join(", "));
  },
  // Makes these images the selection; "what" says how they were chosen.
  select(images, what) {
    state.selection = images;
    map?.select(images);
    show("selection");
    say(`${whole(images.length)} images selected${what ? `: ${what.replace(/^Select /, "")}` : ""}.`);
  },
  clear() {
    state.selection = [];
    map?.select([]);
    refresh();
    say("Nothing is selected.");
  },
};

// Opens a list.
function show(name) {
  state.list = name;
  for (const one of LISTS) {
    const tab = byId(`tab-${one}`);
    tab.setAttribute("aria-selected", String(one === name));
    tab.tabIndex = one === name ? 0 : -1;
    byId(`list-${one}`).hidden = one !== name;
  }
  refresh();
}

function refresh() {
  panels[state.list](byId(`list-${state.list}`));
}

// Colours the map by the chosen column, and draws the legend.
async function colour() {
  const column = columns[state.column];
  const look = appearance(column);
  if (look.range) {
    const [low, high] = look.range.map(short);
    legend.replaceChildren(element("span", {}, low), element("span", { class: "ramp" }), element("span", {}, high));
  } else {
    legend.replaceChildren(...look.entries.slice(0, MOST_LISTED).map((entry) => {
      const dot = element("span", { class: "dot" });
      dot.style.background = `var(--${entry.colour})`;
      return element("button", {
        "aria-pressed": String(state.only.has(entry.code)), click: (event) => only(entry.code, event.currentTarget),
      }, dot, `${shown(entry.text)} `, element("span", { class: "soft" }, whole(entry.count)));
    }), rest(look.entries.length, "values"));
  }
  drawn = drawn.catch(() => {}).then(async () => {
    if (!map || column !== columns[state.column]) return; // a different column was chosen since
    await map.colour(look);
    filter();
    map.select(state.selection);
  });
  await drawn;
}

// Shows a value of the legend alone, with those that are already alone, or no longer.
function only(code, button) {
  const on = !state.only.delete(code);
  if (on) state.only.add(code);
  button.setAttribute("aria-pressed", String(on));
  filter();
  const images = alone();
  say(images ? `${whole(images.length)} images shown.` : "All images shown.");
  if (images) actions.select(images, "values of the legend");
}

const alone = () => (state.only.size ? allWhere((image) => state.only.has(columns[state.column].codes[image])) : null);
const filter = () => map?.filter(alone());

function setLasso(on) {
  map?.lasso(on);
  byId("lasso").setAttribute("aria-pressed", String(on));
  byId("pan").setAttribute("aria-pressed", String(!on));
  frame.classList.toggle("lasso", on);
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const used = () => event.preventDefault();
  if (DIRECTIONS[event.key]) {
    used();
    state.image = state.image < 0 ? 0 : map.next(state.image, DIRECTIONS[event.key]);
    actions.choose(state.image);
    map.mark(state.image);
  } else if (event.key === "Enter" && state.image >= 0) {
    used();
    actions.select([...new Set([...state.selection, state.image])], fileName(state.image));
  } else if (event.key === "+" || event.key === "=") map.zoom(CLOSER);
  else if (event.key === "-") map.zoom(1 / CLOSER);
  else if (event.key === "0") map.all();
  else if (event.key.toLowerCase() === "l") actions.select(map.inView(), "the images in view");
  else if (event.key === "Escape") actions.clear();
}

function listen() {
  const choice = byId("colour-by");
  choice.append(...columns.map((column, number) => element("option", { value: number }, shown(column.name))));
  choice.addEventListener("change", () => {
    state.column = Number(choice.value);
    state.only.clear();
    colour();
    byId("tab-balance").textContent = columns[state.column].numbers ? "Lowest, highest" : "Balance";
    if (state.list === "balance") refresh();
  });
  byId("find").addEventListener("change", (event) => {
    const part = event.target.value.trim().toLowerCase();
    if (part) actions.select(allWhere((image) => place(image).toLowerCase().includes(part)), `paths with ${part}`);
  });
  for (const tab of document.querySelectorAll("[role=tab]")) {
    tab.addEventListener("click", () => show(tab.id.slice("tab-".length)));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const name = LISTS[(LISTS.indexOf(state.list) + step + LISTS.length) % LISTS.length];
      show(name);
      byId(`tab-${name}`).focus();
    });
  }
  const panel = byId("panel");
  panel.addEventListener("click", (event) => {
    const cell = event.target.closest("[data-image]");
    if (cell) {
      actions.choose(Number(cell.dataset.image));
      map?.mark(state.image);
    }
  });
  panel.addEventListener("mouseover", (event) => {
    const cell = event.target.closest("[data-image]");
    if (cell) map?.plot.hover(Number(cell.dataset.image), { preventEvent: true });
  });
}

function listenOnMap() {
  byId("pan").addEventListener("click", () => setLasso(false));
  byId("lasso").addEventListener("click", () => setLasso(true));
  byId("closer").addEventListener("click", () => map.zoom(CLOSER));
  byId("farther").addEventListener("click", () => map.zoom(1 / CLOSER));
  byId("all").addEventListener("click", () => map.all());
  frame.addEventListener("keydown", keys);
  frame.addEventListener("blur", () => map.unmark());
  touch();
  window.addEventListener("mouseup", () => performance.mark("mouse up"), true);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", colour);
}

async function start() {
  listen();
  card(byId("image"), -1);
  show("clusters");
  await new Promise(requestAnimationFrame); // the lists are on the screen before the map is made
  await new Promise((resume) => { setTimeout(resume); });
  try {
    map = makeMap({
      choose: actions.choose,
      select(images) {
        actions.select(images, "lasso");
        performance.measure("lasso", "mouse up");
        requestAnimationFrame(() => setTimeout(() => performance.measure("lasso drawn", "mouse up")));
      },
      clear: actions.clear,
    });
    listenOnMap();
  } catch {
    byId("no-map").hidden = false;
    for (const id of ["pan", "lasso", "closer", "farther", "all"]) byId(id).disabled = true;
  }
  await colour();
  performance.mark("ready");
  document.documentElement.dataset.ready = "true";
}

start();
