// ------------------------------------------------------------------------------------- parts
const shown = {};
/** Renders a part again only if what it shows has changed: a selection in it then stays. */
function part(id, content, render) {
  const key = JSON.stringify(content);
  if (shown[id] === key) return;
  shown[id] = key;
  const made = render(content);
  byId(id).replaceChildren(...(Array.isArray(made) ? made : [made]).filter(Boolean));
}
function verdict(status) {
  const { level, text: words, section } = status.verdict;
  const box = byId("verdict");
  box.className = level;
  document.title = SHAPES[level] + " walsweep: " + (level === "well" ? "all is well" : plain(words));
  const shape = text("span", "shape", SHAPES[level]);
  shape.setAttribute("aria-hidden", "true");
  const more = cure(status.verdict, "more");
  if (section) more.push(el("p", "more", runbook(section)));
  return [shape, text("p", "text", sentence(plain(words))), ...more];
}
/** Everything that does not work, but for what the verdict says already. */
function troubles([list, said]) {
  list = list.filter((one) => !said.includes(one.text));
  if (!list.length) return [];
  const head = document.createElement("h2");
  head.textContent = "What does not work";
  const items = list.map((one) => {
    const item = el(
      "div",
      "card",
      el(
        "div",
        "head",
        state(
          one.stops_ready ? "wrong" : "attention",
          one.stops_ready ? "readers may see old values" : "somebody should look",
        ),
        el("span", "soft small", "for\u00a0", lasting(one.since)),
      ),
      text("p", "", sentence(one.text)),
      cure(one, "soft"),
      el("p", "small", runbook(one.section)),
    );
    return item;
  });
  return [head, el("div", "stack", items)];
}

const history = { transactions: [], keys: [] };
let before = null;
function rates(status) {
  const seconds = before ? (Date.parse(status.now) - Date.parse(before.now)) / 1000 : 0;
  const has = before && before.started === status.started && seconds > 0.2;
  const per = (of) => (has ? Math.max(0, of(status.totals) - of(before.totals)) / seconds : null);
  const keys = (totals) => totals.keys_removed + totals.refills_removed;
  const found = {
    transactions: per((totals) => totals.transactions),
    changes: per((totals) => totals.changes),
    keys: per(keys),
    refills: per((totals) => totals.refills_removed),
    scanned: per((totals) => totals.scanned_keys),
  };
  for (const [name, list] of Object.entries(history)) {
    if (found[name] !== null) list.push(found[name]);
    if (list.length > 90) list.shift();
  }
  before = status;
  return found;
}
function spark(list) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 89 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const most = Math.max(...list, 1e-9);
  const points = list.map(
    (value, at) => 89 - list.length + 1 + at + "," + (19 - (value / most) * 17),
  );
  const line = document.createElementNS(SVG, "polyline");
  line.setAttribute("points", points.join(" "));
  const base = document.createElementNS(SVG, "polyline");
  base.setAttribute("points", "0,19.5 89,19.5");
  base.setAttribute("class", "base");
  svg.append(base, line);
  return svg;
}
function flow({ status, found }) {
  const waits = (stage) =>
    status.waiting.filter((one) => one.stage === stage).reduce((sum, one) => sum + one.count, 0);
  const stage = (name, number, unit, ...lines) =>
    el(
      "li",
      "",
      text("h3", "", name),
      el("p", "big", document.createTextNode(number), text("span", "", unit)),
      lines,
    );
  const line = (words) => text("p", "small", words);
  const unconfirmed = status.postgres.oldest_unconfirmed_seconds;
  const rows = waits("lookups");
  const slot = status.postgres.state;
  return [
    stage(
      "Postgres sends",
      rate(found.transactions),
      "commits/s",
      line(found.changes === null ? "\u00a0" : rate(found.changes) + " row changes/s"),
      spark(history.transactions),
    ),
    stage(
      "Readers cannot see yet",
      grouped(waits("gate")),
      waits("gate") === 1 ? "waits" : "wait",
      line(rows ? grouped(rows) + " more wait" + (rows === 1 ? "s" : "") + " for rows" : "no commit waits for rows"),
    ),
    stage(
      "Redis removes",
      rate(found.keys),
      "keys/s",
      line(
        plural(waits("redis") + waits("pass"), "commit") +
          (waits("redis") + waits("pass") === 1 ? " waits" : " wait"),
      ),
      spark(history.keys),
    ),
    stage(
      "Removed again",
      grouped(waits("second")),
      waits("second") === 1 ? "key waits" : "keys wait",
      line(
        found.refills ? rate(found.refills) + " late fills/s found" : "no late fill found now",
      ),
    ),
    stage(
      "Postgres is told",
      unconfirmed > 0 ? duration(unconfirmed) : "0 s",
      "behind",
      line(slot ? bytes(slot.confirmed_lag_bytes) + " of WAL" : "no slot is known"),
      slot ? text("p", "small mono", slot.confirmed_flush_lsn) : null,
    ),
  ];
}
function waits(list) {
  return list.map((one) =>
    el(
      "li",
      "",
      text("b", "", grouped(one.count)),
      text("span", "", one.what + " " + one.why + (one.target ? " (" + one.target + ")" : "")),
      text(
        "span",
        "age",
        one.oldest_seconds === null ? "" : "oldest " + duration(one.oldest_seconds),
      ),
    ),
  );
}
function meter(share, over, label, value) {
  const bar = document.createElement("i");
  bar.style.width = Math.min(100, Math.max(share * 100, share > 0 ? 0.6 : 0)) + "%";
  const box = el("div", "meter" + (over ? " over" : ""), bar);
  return [el("div", "meter-text", label, value), box];
}
function pair(list, term, ...value) {
  list.append(text("dt", "", term), el("dd", "", value));
}
function postgres(server, phase) {
  const list = document.createElement("dl");
  const slot = server.state;
  pair(list, "Slot", text("code", "", server.slot));
  pair(list, "Database", text("code", "", server.database));
  pair(list, "Publication", text("code", "", server.publication));
  const meters = [];
  if (slot) {
    pair(list, "Confirmed up to", text("code", "", slot.confirmed_flush_lsn));
    pair(list, "wal_status", slot.wal_status);
    pair(list, "WAL kept on disk", bytes(slot.restart_lag_bytes));
    pair(
      list,
      "Until the slot is lost",
      slot.safe_wal_bytes === null ? "no limit set" : bytes(slot.safe_wal_bytes),
    );
    pair(list, "Looked at", ago(slot.looked_at));
    const max = server.max_retained_wal_bytes;
    if (max) {
      const share = slot.confirmed_lag_bytes / max;
      meters.push(
        ...meter(
          share,
          share > 0.5,
          "Not confirmed: " + bytes(slot.confirmed_lag_bytes),
          "of " + bytes(max) + " allowed",
        ),
      );
    } else pair(list, "Not confirmed", bytes(slot.confirmed_lag_bytes));
  }
  const word = server.up
    ? state("well", "connected")
    : state(
        phase.startsWith("standby") ? "busy" : "wrong",
        phase.startsWith("standby") ? "stands by" : "no session",
      );
  return el("article", "card", el("div", "head", text("h3", "", "Postgres"), word), list, meters);
}
function target(one, alone) {
  const list = document.createElement("dl");
  pair(list, "Mode", one.mode);
  if (one.node)
    pair(list, one.mode === "sentinel" ? "Service" : "Address", text("code", "", one.node));
  pair(list, "Rules", grouped(one.rules));
  if (one.proven !== null)
    pair(
      list,
      "Proof",
      one.proven ? "shows that it keeps removals" : "none: it is swept at each connection",
    );
  if (one.index)
    pair(
      list,
      "Index",
      (one.index.whole ? "" : "not whole, ") +
        plural(one.index.keys, "key") +
        ", " +
        bytes(one.index.bytes),
    );
  if (one.unobserved) pair(list, "Writes", "not observed: " + one.unobserved);
  const nodes = one.nodes.flatMap((node) => {
    const many = one.nodes.length > 1 ? node.name + ": " : "";
    const over = node.load > one.max_load * 0.95;
    const made = meter(
      node.load / one.max_load,
      over,
      many + "SCAN takes " + percent(node.load) + " of its time",
      "of " + percent(one.max_load) + " allowed",
    );
    if (node.pass)
      made.push(
        el(
          "p",
          "small soft",
          "A pass takes " +
            duration(node.pass.took_seconds) +
            " of its time, and took " +
            duration(node.pass.seconds) +
            " in all (" +
            plural(node.pass.keys, "name") +
            " read), ",
          ago(node.pass.ended),
        ),
      );
    return made;
  });
  if (!nodes.length) nodes.push(text("p", "small soft", "No SCAN pass yet."));
  const waits = one.phase.startsWith("sweeping") || one.phase.startsWith("not looked at");
  const level = one.ready ? "well" : waits ? "busy" : "wrong";
  return el(
    "article",
    "card",
    el(
      "div",
      "head",
      text("h3", "", alone ? "Redis" : "Redis " + one.name),
      state(level, one.phase),
    ),
    list,
    nodes,
  );
}
const REASONS = {
  rule: "patterns of rules",
  again: "removals made again",
  replayed: "what standbys replayed",
  resync: "everything that may be stale",
  refill: "second removals",
  index: "the index of live keys",
};
function passes(list) {
  if (!list.length) return [];
  const head = text("h2", "", "Passes in progress");
  const cards = list.map((pass) => {
    const nodes = pass.nodes.flatMap((node) => {
      const of =
        node.share === null
          ? "how long it takes is not known"
          : "some " + percent(node.share) + " done";
      return meter(
        node.share || 0,
        false,
        node.name + ": " + plural(node.scanned, "name") + " read",
        of +
          (node.waited_seconds > 0.05
            ? "; waited " + duration(node.waited_seconds) + " for max_load"
            : ""),
      );
    });
    return el(
      "article",
      "card",
      el(
        "div",
        "head",
        text(
          "h3",
          "",
          "SCAN of " + pass.target + " for " + (REASONS[pass.reason] || pass.reason),
        ),
        el(
          "span",
          "soft small",
          plural(pass.patterns, "pattern") + ", for " + duration(pass.seconds),
        ),
      ),
      nodes,
    );
  });
  return [head, el("div", "grid", cards)];
}
function rules(list) {
  const table = document.createElement("table");
  const heads = ["Rule", "Changes", "Removed", "Absent", "Late fills", "Widened", "Last removal"];
  const head = document.createElement("tr");
  for (const name of heads) {
    const cell = text("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  table.append(el("thead", "", head));
  const body = document.createElement("tbody");
  for (const rule of list) {
    const name = el(
      "th",
      "",
      text("span", "", rule.name),
      text("span", "small", rule.source),
      rule.keys.length
        ? text(
            "span",
            "small mono",
            rule.keys.slice(0, 4).join("  ") +
              (rule.keys.length > 4 ? "  and " + (rule.keys.length - 4) + " more" : ""),
          )
        : null,
    );
    name.scope = "row";
    if (rule.suspended) name.append(state("wrong", "suspended: it removes nothing"));
    if (rule.trouble && !rule.suspended) name.append(state("attention", "see above"));
    if (rule.trouble) name.append(text("span", "small", rule.trouble));
    const widened = rule.widened.reduce((sum, one) => sum + one.count, 0);
    const cell = (at, nil, ...value) => {
      const made = el("td", nil ? "nil" : "", value);
      made.dataset.label = heads[at];
      return made;
    };
    const number = (at, count) => cell(at, count === 0, grouped(count));
    const why = rule.widened.map((one) => one.reason + " " + grouped(one.count)).join(", ");
    const wide = cell(
      5,
      widened === 0,
      widened ? el("span", "", grouped(widened), text("span", "small soft", " " + why)) : "0",
    );
    if (widened) wide.classList.add("wrap", "wide");
    body.append(
      el(
        "tr",
        "",
        name,
        number(1, rule.matches),
        number(2, rule.removed),
        number(3, rule.absent),
        number(4, rule.refills),
        wide,
        cell(6, !rule.last_removed, rule.last_removed ? ago(rule.last_removed) : "never yet"),
      ),
    );
  }
  table.append(body);
  return [
    el("h2", "", "Rules", text("small", "", "since walsweep began")),
    el("div", "table", table),
  ];
}
const FEW = 8;
let showsAll = false;
/** Shows all of the transactions, or few again. */
function toggle(count) {
  const button = text("button", "", showsAll ? "Show fewer" : "Show all " + count);
  button.type = "button";
  button.onclick = () => {
    showsAll = !showsAll;
    part("transactions", [before.transactions, showsAll], transactions);
  };
  return button;
}
function transactions([list]) {
  const head = el("h2", "", "Last transactions", text("small", "", "that had keys"));
  if (!list.length) return [head, text("p", "none", "None yet.")];
  const heads = ["Transaction", "Rules", "Seen after", "Gone after", "Again after"];
  const row = document.createElement("tr");
  for (const name of heads) {
    const cell = text("th", "", name);
    cell.scope = "col";
    row.append(cell);
  }
  const body = document.createElement("tbody");
  // The clocks of both servers may differ a little: no time is shown as less than 0.
  const after = (from, to) => duration(Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000));
  for (const one of showsAll ? list : list.slice(0, FEW)) {
    const keys = one.keys.map((key) => (typeof key === "string" ? key : "0x" + key.hex));
    const name = el(
      "th",
      "",
      text("span", "", String(one.xid)),
      text("span", "small mono", one.lsn),
      el("span", "small", ago(one.committed)),
    );
    name.scope = "row";
    const rules = one.rules.map((rule) =>
      el(
        "div",
        "",
        text("b", "", rule.rule),
        document.createTextNode(
          ": " +
            [
              rule.keys ? plural(rule.keys, "key") : "",
              rule.patterns ? plural(rule.patterns, "pattern") : "",
            ]
              .filter(Boolean)
              .join(", ") +
            (rule.widened && rule.widened.length
              ? ", widened (" + rule.widened.map((why) => why.reason).join(", ") + ")"
              : ""),
        ),
      ),
    );
    const what = el(
      "td",
      "wrap wide left",
      rules,
      keys.length ? text("div", "small mono soft", keys.join("  ")) : null,
    );
    const cell = (at, missing, ...value) => {
      const made = el("td", missing ? "nil" : "", value);
      made.dataset.label = heads[at];
      return made;
    };
    const many = one.targets.length > 1;
    const each = (of, none) =>
      one.targets.map((target) =>
        text(
          "div",
          of(target) ? "" : "nil",
          (many ? target.target + " " : "") +
            (of(target) ? after(one.committed, of(target)) : none(target)),
        ),
      );
    const waits = one.visible ? (one.waits_for_rows ? "waits for rows" : "waits") : "–";
    const gone = (target) => (target.refused ? "refused, owed" : waits);
    body.append(
      el(
        "tr",
        "",
        name,
        what,
        cell(2, !one.visible, one.visible ? after(one.committed, one.visible) : "not yet"),
        cell(3, false, ...each((target) => target.removed, gone)),
        cell(4, false, ...each((target) => target.removed_again, () => "–")),
      ),
    );
  }
  const table = el("div", "table txs", el("table", "", el("thead", "", row), body));
  return [head, table, list.length > FEW ? toggle(list.length) : null];
}
function latency(found) {
  const head = el(
    "h2",
    "",
    "Commit to gone",
    text("small", "", "by the server's clock, since walsweep began"),
  );
  if (!found.count) return [head, text("p", "none", "No commit had keys yet.")];
  const within = (share) => {
    let sum = 0;
    for (const bucket of found.buckets) {
      sum += bucket.count;
      if (sum >= found.count * share) return bucket.up_to_seconds;
    }
    return null;
  };
  const bound = (seconds) => (seconds === null ? "any time" : duration(seconds));
  const most = Math.max(...found.buckets.map((bucket) => bucket.count));
  const rows = found.buckets.map((bucket) => {
    const bar = document.createElement("i");
    bar.style.width = (bucket.count ? Math.max((bucket.count / most) * 100, 0.5) : 0) + "%";
    return el(
      "div",
      "row",
      text(
        "span",
        "",
        bucket.up_to_seconds === null ? "longer" : "up to " + duration(bucket.up_to_seconds),
      ),
      el("div", "bar", bar),
      text("span", "", grouped(bucket.count)),
    );
  });
  const words =
    "Of " +
    plural(found.count, "commit") +
    " half were gone within " +
    bound(within(0.5)) +
    ", 99\u00a0% within " +
    bound(within(0.99)) +
    ".";
  return [head, el("div", "card", text("p", "", words), el("div", "bars", rows))];
}

// ---------------------------------------------------------------------------------- the whole
let latest = 0;
function show(status) {
  latest = Date.now();
  offset = latest - Date.parse(status.now);
  byId("what").textContent =
    "slot " + status.postgres.slot + " of " + status.postgres.database + " · " + status.version;
  part("verdict", { verdict: status.verdict }, () => verdict(status));
  part("troubles", [status.troubles, status.verdict.text], troubles);
  part("flow", { status, found: rates(status) }, flow);
  part("waits", status.waiting, waits);
  part("passes", status.passes, passes);
  part(
    "servers",
    [status.postgres, status.targets, status.postgres.up ? "" : status.phase],
    ([server, targets, phase]) => [
      postgres(server, phase),
      ...targets.map((one) => target(one, targets.length === 1)),
    ],
  );
  part("rules", status.rules, rules);
  part("transactions", [status.transactions, showsAll], transactions);
  part("latency", status.latency, latency);
  part("since", status.started, (moment) => el("span", "", "Running for ", lasting(moment)));
  tick();
}
function tick() {
  document.querySelectorAll("time[data-since]").forEach(age);
  const old = latest ? (Date.now() - latest) / 1000 : null;
  const lost = old !== null && old > 3.5;
  const words = old === null ? "connecting …" : lost ? "✕ no connection" : "● live";
  if (byId("link").textContent !== words) byId("link").textContent = words;
  document.body.classList.toggle("stale", lost);
  byId("lost").hidden = !lost;
  if (lost) {
    byId("lost").textContent =
      "✕ No connection to walsweep: what you see is " +
      duration(Math.floor(old)) +
      " old. It is tried again.";
    document.title = "✕ walsweep: no connection";
    delete shown.verdict;
  }
}

// Events, and where no more may listen, or something in between holds them back, a question now
// and then.
let source = null;
function listen() {
  source = new EventSource("/events");
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) {
      source = null;
    }
  };
}
async function ask() {
  if (source && Date.now() - latest < 4500) return;
  try {
    const answer = await fetch("/status", { cache: "no-store" });
    if (answer.ok) show(await answer.json());
  } catch (error) {
    /* the line above says that there is no connection */
  }
  if (!source) listen();
}
listen();
setInterval(tick, 500);
setInterval(ask, 5000);
