"use strict";
// Every name and key comes into the page through `textContent`: none of them is ever markup.
const byId = (id) => document.getElementById(id);
const SHAPES = { well: "✓", busy: "◔", attention: "▲", wrong: "✕" };
const SVG = "http://www.w3.org/2000/svg"; // a name, and no address to ask

/** An element with a class, and children: elements, or texts as they are. */
function el(tag, name, ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) element.append(child);
    else {
      const span = document.createElement("span");
      span.textContent = String(child);
      element.append(span);
    }
  }
  return element;
}
function text(tag, name, content) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = content;
  return element;
}

// ------------------------------------------------------------------------------------- words
const grouped = (number) => String(Math.round(number)).replace(/\B(?=(\d{3})+$)/g, "\u202f");
function plural(count, noun) {
  return grouped(count) + " " + noun + (count === 1 ? "" : "s");
}
function rate(perSecond) {
  if (perSecond === null) return "–";
  return perSecond < 9.95 && perSecond > 0 ? perSecond.toFixed(1) : grouped(perSecond);
}
function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (Math.abs(count) >= 1024 && at < units.length - 1) {
    count /= 1024;
    at += 1;
  }
  return (at === 0 || count >= 99.5 ? grouped(count) : count.toFixed(1)) + "\u00a0" + units[at];
}
function duration(seconds) {
  if (seconds < 0.00095) return Math.round(seconds * 1e6) + "\u00a0µs";
  if (seconds < 0.0095) return (seconds * 1e3).toFixed(1).replace(/\.0$/, "") + "\u00a0ms";
  if (seconds < 0.95) return Math.round(seconds * 1e3) + "\u00a0ms";
  if (seconds < 9.95) return seconds.toFixed(1).replace(/\.0$/, "") + "\u00a0s";
  if (seconds < 99.5) return Math.round(seconds) + "\u00a0s";
  if (seconds < 5400) return Math.round(seconds / 60) + "\u00a0min";
  if (seconds < 172800) return Math.round(seconds / 3600) + "\u00a0h";
  return Math.round(seconds / 86400) + "\u00a0days";
}
function percent(share) {
  return (
    (share > 0 && share < 0.0995 ? (share * 100).toFixed(1) : Math.round(share * 100)) + "\u00a0%"
  );
}
const plain = (words) => words.replaceAll("`", ""); // a headline quotes no code
const sentence = (words) => words.charAt(0).toUpperCase() + words.slice(1);

// -------------------------------------------------------------------------------------- time
let offset = 0; // of this clock to walsweep's, milliseconds
const now = () => Date.now() - offset;
/** "3 s ago", kept up to date without another rendering. */
function ago(moment) {
  const time = document.createElement("time");
  time.dateTime = moment;
  time.title = moment;
  time.dataset.since = moment;
  age(time);
  return time;
}
function age(time) {
  const seconds = Math.max(0, Math.floor((now() - Date.parse(time.dataset.since)) / 1000));
  const words = time.dataset.plain
    ? duration(seconds)
    : seconds < 1
      ? "just now"
      : duration(seconds) + " ago";
  if (time.textContent !== words) time.textContent = words;
}
function lasting(moment) {
  const time = ago(moment);
  time.dataset.plain = "yes";
  age(time);
  return time;
}

// ------------------------------------------------------------------------- verdicts and troubles
function state(level, words) {
  const element = el("span", "state " + level);
  element.append(text("span", "", SHAPES[level] + "\u00a0"), document.createTextNode(words));
  element.firstChild.setAttribute("aria-hidden", "true");
  return element;
}
function runbook(section) {
  const link = text("a", "", "What to do");
  link.href = "/runbook#" + encodeURIComponent(section);
  return link;
}
/** What to do: in words, and below them the SQL, as a person runs it. */
function cure(one, name) {
  const made = [];
  if (one.hint) made.push(text("p", name, sentence(one.hint)));
  if (one.sql) made.push(text("pre", name, one.sql + ";"));
  return made;
}
