// The lists beside the map. Each function fills one; state and actions are those of page.js.

const MOST_LISTED = 200; // clusters, groups or rows that a list shows
const COVERED_BY = 5; // an image is covered where it, or one of as many nearest neighbours, is selected

const panels = {
  selection(target) {
    const images = state.selection;
    if (!images.length) {
      target.replaceChildren(element("p", { class: "soft" }, "Nothing is selected. Draw a lasso on the map, or select "
        + "a class in the legend, a cluster or a group; then download the paths."));
      return;
    }
    target.replaceChildren(
      element("p", { class: "count" }, `${whole(images.length)} of ${whole(COUNT)} images`),
      element("p", { id: "coverage", class: "soft small" }, coverage(images)),
      element("p", { class: "bar" },
        element("button", { id: "paths", click: () => download("paths.txt",
          images.map((image) => line(place(image))).join(""), "text/plain") }, "Download paths"),
        element("button", { id: "table", click: () => download("selection.csv", table(images), "text/csv") },
          "Download table"),
        element("button", { click: actions.clear }, "Clear")),
      grid(images, (image) => columns.slice(0, 1).map((column) => shown(valueOf(column, image))), "Selected images"));
  },

  clusters(target) {
    const counts = countsOf(clusters);
    const order = [...counts.keys()].filter((code) => counts[code]).sort((a, b) => counts[b] - counts[a]);
    target.replaceChildren(
      element("p", { class: "soft small" }, "Groups of similar images, the largest first, each with its most typical "
        + "images."),
      ...order.slice(0, MOST_LISTED).map((code) => element("section", { class: "group" },
        element("h3", {}, shown(clusters.values[code])),
        element("p", { class: "soft small" }, `${whole(counts[code])} images, ${percent(counts[code] / COUNT)}`
          + mostLabels(code)),
        selectButton(() => imagesOf(clusters, code), `Select cluster ${shown(clusters.values[code])}`),
        grid(data.representatives[code], () => [], `Typical images of cluster ${shown(clusters.values[code])}`, 64))));
  },

  duplicates(target) {
    const groups = data.duplicates;
    if (!groups.length) {
      target.replaceChildren(element("p", { class: "soft" }, "No two images are nearly the same."));
      return;
    }
    const spare = groups.flatMap((group) => group.slice(1));
    target.replaceChildren(
      element("p", {}, `${whole(groups.length)} groups of images that are nearly the same. Without `
        + `${whole(spare.length)} of them, one of each group remains.`),
      element("p", { class: "bar" }, element("button", {
        id: "spare", click: () => actions.select(spare, "all but one of each group"),
      }, "Select all but one of each group")),
      ...groups.slice(0, MOST_LISTED).map((group, number) => element("section", { class: "group" },
        selectButton(() => group, `Select group ${number + 1}`, `${group.length} images`),
        grid(group, () => [], `Near-duplicates, group ${number + 1}`))),
      rest(groups.length, "groups"));
  },

  outliers(target) {
    target.replaceChildren(
      element("p", { class: "soft small" }, "The images that are least like their nearest neighbours, the oddest first. "
        + "Below each, its outlier score."),
      grid([...outliers], (image) => [scores[image].toFixed(3)], "Outliers"));
  },

  issues(target) {
    const { issues } = data;
    if (!issues.length) {
      target.replaceChildren(element("p", { class: "soft" }, "No label contradicts the neighbours of its image."));
      return;
    }
    const issueOf = new Map(issues.map((issue) => [issue.image, issue]));
    target.replaceChildren(
      element("p", {}, `${whole(issues.length)} labels contradict the images' neighbours, the most suspicious first. `
        + "Below each: its label, what the neighbours suggest, and how sure they are."),
      element("p", { class: "bar" }, element("button", {
        click: () => actions.select(issues.map((issue) => issue.image), "labels to check"),
      }, "Select all")),
      grid(issues.map((issue) => issue.image), (image) => {
        const { label, suggested, confidence } = issueOf.get(image);
        return [shown(label), `→ ${shown(suggested)}`, percent(confidence)];
      }, "Labels to check", 96));
  },

  balance(target) {
    const column = columns[state.column];
    if (column.numbers) {
      extremes(target, column);
      return;
    }
    const counts = countsOf(column);
    const order = [...counts.keys()].filter((code) => counts[code]).sort((a, b) => counts[b] - counts[a]);
    const total = order.reduce((sum, code) => sum + counts[code], 0);
    const most = counts[order[0]];
    target.replaceChildren(
      element("p", {}, evenness(shown(column.name), order.map((code) => counts[code]))),
      element("table", { class: "balance" },
        element("thead", {}, element("tr", {}, ...[shown(column.name), "Images", "Share"].map((text) =>
          element("th", { scope: "col" }, text)))),
        element("tbody", {}, ...order.slice(0, MOST_LISTED).map((code) => {
          const row = element("tr", {}, element("th", { scope: "row" }, selectButton(() => imagesOf(column, code),
            `Select ${shown(column.values[code])}`, shown(column.values[code]))),
          element("td", {}, whole(counts[code])), element("td", {}, percent(counts[code] / total)));
          row.style.setProperty("--share", counts[code] / most);
          return row;
        }))),
      rest(order.length, "values"));
  },
};

// How even the values of a column are, in words, from how many images have each, the most frequent first.
function evenness(name, counts) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (!total) return `No image has a ${name}.`;
  const without = total < COUNT ? ` ${whole(COUNT - total)} images have none.` : "";
  if (counts.length === 1) return `All images${without && " with one"} have the same ${name}.${without}`;
  const entropy = counts.reduce((sum, count) => sum - count / total * Math.log(count / total), 0);
  const ratio = Number((counts[0] / counts[counts.length - 1]).toPrecision(2));
  return `The largest ${name} has ${whole(ratio)} times the images of the smallest; ${whole(counts.length)} are as `
    + `uneven as ${Math.exp(entropy).toFixed(1)} of equal size.${without}`;
}

// The images with the lowest and with the highest numbers of a column.
function extremes(target, column) {
  const order = allWhere((image) => !Number.isNaN(column.numbers[image]))
    .sort((a, b) => column.numbers[a] - column.numbers[b]);
  const part = (heading, images) => [
    element("h3", {}, heading), grid(images, (image) => [valueOf(column, image)], heading, 76, FIRST / 3)];
  const name = shown(column.name);
  target.replaceChildren(...part(`Lowest ${name}`, order), ...part(`Highest ${name}`, [...order].reverse()));
}

// How much of all images a selection covers (Naeem et al., ICML 2020, equation 5, with all images as the target).
function coverage(images) {
  const { count } = data.neighbours;
  const near = Math.min(COVERED_BY, count);
  const chosen = new Uint8Array(COUNT);
  for (const image of images) chosen[image] = 1;
  let covered = 0;
  for (let image = 0; image < COUNT; image++) {
    let is = chosen[image];
    for (let i = 0; i < near && !is; i++) is = chosen[neighbours[image * count + i]];
    covered += is;
  }
  let missed = 1; // the chance that neither an image nor one of its neighbours is among as many random ones
  for (let i = 0; i <= near; i++) missed *= Math.max(0, COUNT - images.length - i) / (COUNT - i);
  return `The selection covers ${percent(covered / COUNT)} of all images: it has them or one of their ${near} nearest `
    + `neighbours. As many random images would cover ${percent(1 - missed)}.`;
}

function rest(count, what) {
  return count > MOST_LISTED ? element("p", { class: "soft small" }, `${whole(count - MOST_LISTED)} more ${what}.`) : "";
}

function percent(share) {
  return `${(100 * share).toFixed(1)}%`;
}

function selectButton(images, label, text = "Select all") {
  return element("button", { class: "plain", "aria-label": label, click: () => actions.select(images(), label) }, text);
}

// The most frequent labels of a cluster.
function mostLabels(code) {
  if (!data.labelled) return "";
  const [labels] = columns;
  const counts = new Array(labels.values.length).fill(0);
  let total = 0;
  for (let image = 0; image < COUNT; image++) {
    if (clusters.codes[image] === code && labels.codes[image] >= 0) {
      counts[labels.codes[image]]++;
      total++;
    }
  }
  const most = [...counts.keys()].sort((a, b) => counts[b] - counts[a]).slice(0, 3).filter((label) => counts[label]);
  return most.length ? `: ${most.map((label) => `${shown(labels.values[label])} ${percent(counts[label] / total)}`)
    .join(", ")}` : "";
}

// The image that was clicked, what is known about it, and its neighbours.
function card(target, image) {
  if (image < 0) {
    target.replaceChildren(element("p", { class: "soft" }, "Click a point or a thumbnail to see its neighbours."));
    return;
  }
  const facts = columns.map((column) => [shown(column.name), shown(valueOf(column, image))])
    .filter(([, text]) => text !== "");
  const near = neighboursOf(image);
  const { count, steps } = data.neighbours;
  const similarity = new Map(near.map((other, i) => [other, similarities[image * count + i] / steps]));
  const group = duplicateOf[image];
  target.replaceChildren(
    element("div", { class: "chosen" }, thumbnail(image, 144), element("div", {},
      element("h2", {}, fileName(image)),
      element("p", { class: "path small soft" }, shown(place(image))),
      element("dl", {}, ...facts.map(([name, text]) => element("div", {}, element("dt", {}, name),
        element("dd", {}, text)))),
      element("p", { class: "bar" },
        data.folder ? element("a", { href: address(image), target: "_blank", rel: "noopener" }, "Open the image") : "",
        selectButton(() => [image, ...near], "Select the image and its neighbours", "Select with neighbours"),
        group < 0 ? "" : selectButton(() => data.duplicates[group], "Select its near-duplicates",
          `${data.duplicates[group].length} near-duplicates`)))),
    element("h3", {}, "Nearest neighbours"),
    grid(near, (other) => [similarity.get(other).toFixed(2)], "Nearest neighbours", 64));
}

// The file of an image, relative to the page; a name is never taken for the address of something else.
function address(image) {
  const encoded = (name) => pieces(name).map((piece, at) => (at % 2 ? `%${byteOf(piece).toString(16)}`
    : encodeURIComponent(piece.replace(/[\ud800-\udfff]/gu, "\ufffd")))).join("");
  return data.folder + parts(image).map(encoded).join("/");
}
