// The video of `vidpipe demo` with what a model says of it: run by Gradio once, with `element`, the
// component's own, `props`, whose value is what pipeline/tools/demo_film.py makes, and `watch`.
// Names are anyone's: they become text, never markup.
const find = (name) => element.querySelector("." + name);
const made = (parent, tag, name, text) => {
  const child = parent.appendChild(document.createElement(tag));
  if (name) child.className = name;
  if (text) child.textContent = text;
  return child;
};
const time = (seconds) => {
  const minutes = Math.floor(seconds / 60);
  const rest = (seconds - 60 * minutes).toFixed(1);
  return minutes ? minutes + ":" + rest.padStart(4, "0") : rest;
};
const video = find("film-video");
let film = null;  // its value
let source = "";  // what is in the player
let span = null;  // that is being played: [start, end]

function play(start, end) {
  span = [start, end];
  video.currentTime = start;
  video.play().catch(() => {});
}

function drawBoxes() {
  const at = video.currentTime;
  const now = (film && film.people || []).filter((one) => one.start <= at && at < one.end);
  const key = now.map((one) => one.number).join();
  const layer = find("film-boxes");
  if (layer.dataset.key === key) return;
  layer.dataset.key = key;
  layer.replaceChildren();
  for (const one of now) {
    const [x1, y1, x2, y2] = one.box;
    const box = made(layer, "div", "film-box");
    box.style.cssText = `left:${100 * x1}%;top:${100 * y1}%;width:${100 * (x2 - x1)}%;height:${100 * (y2 - y1)}%`;
    box.style.borderColor = one.colour;
    const text = made(box, "span", y1 < 0.12 ? "film-inside" : "", one.text);
    text.style.backgroundColor = one.colour;
  }
}

function tick() {
  if (film) find("film-head").style.left = 100 * video.currentTime / film.seconds + "%";
  drawBoxes();
  if (span && video.currentTime >= span[1] - 0.02) {
    span = null;
    video.pause();
  }
  if (!video.paused) requestAnimationFrame(tick);
}
for (const name of ["play", "seeked", "timeupdate", "loadeddata"]) video.addEventListener(name, tick);
video.addEventListener("seeking", () => {
  if (span && (video.currentTime < span[0] - 0.1 || video.currentTime > span[1])) span = null;
});

function drawTimeline() {
  const rows = find("film-rows"), list = find("film-list"), percent = (x) => 100 * x / film.seconds + "%";
  rows.replaceChildren();
  list.replaceChildren();
  const all = [];
  for (const row of film.rows) {
    const line = made(rows, "div", "film-row");
    made(line, "span", "film-label", row.label).title = row.label;
    const track = made(line, "div", "film-track");
    for (const [start, end, score] of row.bands) {
      const text = `${row.label}: ${time(start)} to ${time(end)} s, ${Math.round(100 * score)}%`;
      const band = made(track, "button", "film-band");
      band.style.cssText = `left:${percent(start)};width:${percent(end - start)}`;
      band.style.backgroundColor = row.colour;
      band.title = text;
      band.setAttribute("aria-label", text);
      band.addEventListener("click", () => play(start, end));
      all.push([start, end, text, row.colour]);
    }
  }
  for (const [start, end, text, colour] of all.sort((a, b) => a[0] - b[0])) {
    const item = made(list, "button", "film-item");
    made(item, "i").style.backgroundColor = colour;
    made(item, "span", "", text);
    item.addEventListener("click", () => play(start, end));
  }
  const ruler = find("film-ruler");
  ruler.replaceChildren();
  for (let part = 0; part <= 4; part++) made(ruler, "span", "", time(film.seconds * part / 4));
  find("film-lines").style.display = film.rows.length ? "" : "none";
}

async function show() {
  film = props.value || null;
  find("film").style.display = film ? "" : "none";
  if (!film) {
    video.removeAttribute("src");
    video.load();
    source = "";
    return;
  }
  find("film-note").textContent = film.note;
  drawTimeline();
  find("film-boxes").dataset.key = "none";
  if (source !== film.url) {
    source = film.url;
    span = null;
    // All of it, at once: the server keeps it for ten minutes.
    const data = await (await fetch(film.url)).blob();
    if (source !== film.url) return;
    if (video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
    video.src = URL.createObjectURL(new Blob([data], {type: "video/mp4"}));
  }
  tick();
}
watch("value", show);
show();
