// The map: regl-scatterplot draws it; here are its colours, its tip, keys and fingers.

const frame = document.getElementById("map");
const canvas = document.getElementById("canvas");
const tip = document.getElementById("tip");
const CLOSER = 1.5;

// Makes the map. The handlers: choose(image), select(images) after a lasso, and clear().
function makeMap(handlers) {
  const x = Float32Array.from({ length: COUNT }, (_, image) => points[2 * image]);
  const y = Float32Array.from({ length: COUNT }, (_, image) => points[2 * image + 1]);
  let index = null; // of places, which every later drawing uses again
  let codes = null;
  let silent = false;
  const plot = Scatterplots.createScatterplot({
    canvas, width: "auto", height: "auto", pointSize: COUNT > 20000 ? 3 : COUNT > 3000 ? 4 : 6, colorBy: "valueA",
    opacity: COUNT > 3000 ? 0.8 : 0.9, opacityInactiveMax: 0.5, opacityInactiveScale: 0.35, pointSizeSelected: 2,
    lassoMinDelay: 8, lassoMinDist: 3, deselectOnDblClick: false, deselectOnEscape: false,
    backgroundColor: rgba("panel"),
  });
  let hovered = -1;
  plot.subscribe("pointover", (image) => { hovered = image; showTip(image); });
  plot.subscribe("pointout", () => { hovered = -1; tip.hidden = true; });
  plot.subscribe("view", () => { tip.hidden = true; });
  let lasso = ""; // "drawn" from its start to its end, "ended" until the next press of the button
  plot.subscribe("lassoStart", () => { lasso = "drawn"; });
  plot.subscribe("lassoEnd", () => {
    lasso = "ended";
    handlers.select([...plot.get("selectedPoints")]);
  });
  plot.subscribe("select", ({ points: images }) => {
    if (!silent && lasso !== "drawn" && images.length) handlers.choose(images[images.length - 1]);
  });
  plot.subscribe("deselect", () => { if (!silent && lasso !== "drawn") handlers.clear(); });
  frame.addEventListener("mousedown", () => { lasso = ""; }, true);
  frame.addEventListener("click", (event) => { if (lasso) event.stopPropagation(); }, true); // it ends the lasso alone

  function showTip(image) {
    const [left, top] = plot.getScreenPosition(image);
    tip.replaceChildren(thumbnail(image, 112), element("span", { class: "path" }, fileName(image)),
      ...columns.slice(0, 2).map((column) => element("span", {}, caption(column, image))));
    tip.hidden = false;
    const { width, height } = frame.getBoundingClientRect();
    tip.style.left = `${Math.min(Math.max(left + 14, 4), width - tip.offsetWidth - 4)}px`;
    const below = top + 14 + tip.offsetHeight < height;
    tip.style.top = `${below ? top + 14 : Math.max(top - 14 - tip.offsetHeight, 4)}px`;
  }

  return {
    plot,
    hovered: () => hovered,
    // Draws the points in the colours of an appearance.
    async colour({ codes: values, colours }) {
      codes = values;
      plot.set({
        pointColor: colours, pointColorActive: colours, pointColorHover: rgba("ink"), lassoColor: rgba("ink"),
        backgroundColor: rgba("panel"),
      });
      await plot.draw({ x, y, valueA: codes }, { zDataType: "categorical", ...(index && { spatialIndex: index }) });
      index = plot.get("spatialIndex");
    },
    // Lets these images stand out; none: all are alike.
    select(images) {
      silent = true;
      if (images.length) plot.select(images, { preventEvent: true });
      else plot.deselect({ preventEvent: true });
      silent = false;
    },
    // Shows these images alone; null: all.
    filter(images) {
      silent = true;
      if (images) plot.filter(images, { preventEvent: true });
      else plot.unfilter({ preventEvent: true });
      silent = false;
    },
    // Marks an image with its tip, and brings it into view.
    mark(image) {
      const [left, top] = plot.getScreenPosition(image);
      const { width, height } = frame.getBoundingClientRect();
      const outside = left < 0 || top < 0 || left > width || top > height;
      if (outside) plot.zoomToLocation([x[image], y[image]], plot.get("cameraDistance")[0] ?? 1);
      plot.hover(image, { preventEvent: true });
      showTip(image);
    },
    unmark() {
      plot.hover(-1, { preventEvent: true });
      tip.hidden = true;
    },
    lasso(on) { plot.set({ mouseMode: on ? "lasso" : "panZoom" }); },
    zoom(factor) {
      const box = canvas.getBoundingClientRect();
      wheel(box.left + box.width / 2, box.top + box.height / 2, factor);
    },
    all() { plot.zoomToArea({ x: -1, y: -1, width: 2, height: 2 }, { transition: false }); },
    inView: () => plot.get("pointsInView"),
    // The nearest image in a direction, which is (1, 0) for right; the same image where there is none.
    next(image, [right, up]) {
      let best = image;
      let least = Infinity;
      for (let other = 0; other < COUNT; other++) {
        const along = (x[other] - x[image]) * right + (y[other] - y[image]) * up;
        const aside = Math.abs((x[other] - x[image]) * up - (y[other] - y[image]) * right);
        const distance = along * along + 4 * aside * aside;
        if (along > 0 && aside <= along && distance < least) [best, least] = [other, distance];
      }
      return best;
    },
  };
}

// The library knows a mouse alone: one finger becomes its button, two fingers become its wheel.
function touch() {
  let apart = 0;
  let queue = Promise.resolve(); // what fingers did is sent in order
  const frameDrawn = () => new Promise(requestAnimationFrame);
  const send = (finger, buttons, ...names) => {
    const { clientX, clientY } = finger;
    queue = queue.then(() => names.forEach((name) => canvas.dispatchEvent(new MouseEvent(name, {
      bubbles: true, cancelable: true, view: window, clientX, clientY, buttons,
    }))));
  };
  const spread = ([a, b]) => Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY);
  canvas.addEventListener("touchstart", (event) => {
    event.preventDefault();
    const [finger] = event.touches;
    if (event.touches.length === 2) {
      send(finger, 0, "mouseup");
      apart = spread(event.touches);
    } else {
      send(finger, 0, "mouseenter", "mousemove");
      queue = queue.then(frameDrawn).then(frameDrawn); // the way to the finger must not count as dragging
      send(finger, 1, "mousedown");
    }
  }, { passive: false });
  canvas.addEventListener("touchmove", (event) => {
    event.preventDefault();
    const [a, b] = event.touches;
    if (b) {
      const [now, before] = [spread(event.touches), apart];
      const [x, y] = [(a.clientX + b.clientX) / 2, (a.clientY + b.clientY) / 2];
      queue = queue.then(() => wheel(x, y, now / before));
      apart = now;
    } else send(a, 1, "mousemove");
  }, { passive: false });
  canvas.addEventListener("touchend", (event) => {
    event.preventDefault();
    if (!event.touches.length) send(event.changedTouches[0], 0, "mouseup", "click");
  }, { passive: false });
}

// Zooms by a factor around a place of the window.
function wheel(clientX, clientY, factor) {
  canvas.dispatchEvent(new MouseEvent("mousemove", { bubbles: true, clientX, clientY, buttons: 0 }));
  canvas.dispatchEvent(new WheelEvent("wheel", {
    bubbles: true, cancelable: true, clientX, clientY, deltaY: -Math.log(factor) * canvas.clientHeight,
  }));
}
