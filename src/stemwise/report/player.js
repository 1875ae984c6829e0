// Plays the variants of a song at one position: all of them run, side by side on one clock, and gains choose what is
// heard. Switching is therefore a cross-fade of FADE seconds at the very same sample.
//
// Sound comes in chunks, each a script beside the page that calls `stemwise.sound` with Ogg Opus in base64
// (stemwise/report/sound.py says why). Two chunks are held at a time, and none before something is to be played.
"use strict";

(() => {
  const RATE = 48000; // Hz, of Opus: nothing is resampled
  const FADE = 0.008; // seconds
  const AHEAD = 0.04; // seconds from a click to the first sample, so that no start is late
  const SVG = "http://www.w3.org/2000/svg";

  const players = new Map(); // by key
  let context = null;
  let current = null; // the player that keys are for, and the only one that sounds

  window.stemwise = { sound: (key, number, coded) => players.get(key)?.arrived(number, coded) };

  const onGrid = (seconds) => Math.round(seconds * RATE) / RATE;
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

  function bytes(base64) {
    const text = atob(base64);
    const found = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
    return found;
  }

  function clock(seconds, digits) {
    const unit = 10 ** digits;
    const whole = Math.floor(seconds * unit + 1e-6);
    const rest = (whole % (60 * unit)) / unit;
    return `${Math.floor(whole / (60 * unit))}:${rest < 10 ? "0" : ""}${rest.toFixed(digits)}`;
  }

  function spoken(seconds) {
    const minutes = Math.floor(seconds / 60);
    const rest = Math.floor(seconds % 60);
    return minutes ? `${minutes} min ${rest} s` : `${rest} s`;
  }

  // Sound from one start to the next stop. Gains of its own, so that the sound before can fade while it begins.
  class Run {
    constructor(position, levels) {
      this.from = onGrid(position);
      this.begin = null; // the clock's time at which `from` is heard; null until the first chunk is there
      this.end = this.from; // the position up to which sound is handed over
      this.stopped = false;
      this.sources = [];
      this.out = context.createGain();
      this.out.connect(context.destination);
      this.levels = levels;
      this.gains = levels.map((level) => {
        const gain = context.createGain();
        gain.gain.value = level;
        gain.connect(this.out);
        return gain;
      });
    }

    position() {
      if (this.begin === null) return this.from;
      const heard = context.currentTime - (context.outputLatency || 0);
      return clamp(this.from + heard - this.begin, this.from, this.end);
    }

    // Hands over `length` seconds of each buffer, from `offset` on, to be heard at `position`.
    add(buffers, position, offset, length) {
      const soon = onGrid(context.currentTime + AHEAD);
      if (this.begin === null) {
        this.begin = soon;
        this.out.gain.setValueAtTime(0, soon);
        this.out.gain.linearRampToValueAtTime(1, soon + FADE);
      } else if (this.begin + position - this.from < context.currentTime) {
        this.begin = soon - (position - this.from); // it came late: all go on together, after a gap
      }
      const when = this.begin + position - this.from;
      buffers.forEach((buffer, variant) => {
        const source = new AudioBufferSourceNode(context, { buffer });
        source.connect(this.gains[variant]);
        source.start(when, offset, length);
        source.onended = () => this.sources.splice(this.sources.indexOf(source), 1);
        this.sources.push(source);
      });
      this.end = position + length;
    }

    mix(levels) {
      const now = context.currentTime;
      this.gains.forEach(({ gain }, variant) => {
        if (levels[variant] === this.levels[variant]) return;
        gain.cancelScheduledValues(now);
        gain.setValueAtTime(this.levels[variant], now);
        gain.linearRampToValueAtTime(levels[variant], now + FADE);
      });
      this.levels = levels;
    }

    stop() {
      this.stopped = true;
      const now = context.currentTime;
      this.out.gain.cancelScheduledValues(now);
      this.out.gain.setValueAtTime(1, now);
      this.out.gain.linearRampToValueAtTime(0, now + FADE);
      for (const source of this.sources) source.stop(now + FADE);
      setTimeout(() => this.out.disconnect(), 1000);
    }
  }

  class Player {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
      this.peaks = new Int8Array(bytes(this.data.peaks).buffer);
      this.version = 0;
      this.divided = Math.max(0, this.data.versions.findIndex((version) => version.mixture === null));
      this.solo = new Set();
      this.muted = new Set();
      this.used = 0; // the stem that was touched last
      this.at = 0; // seconds, while nothing plays
      this.run = null;
      this.chunks = new Map(); // number -> promise of buffers
      this.waiting = new Map(); // number -> how to keep that promise
      players.set(this.data.key, this);
      this.find();
      this.label();
      this.listen();
      this.show();
    }

    all(selector) {
      return [...this.root.querySelectorAll(selector)];
    }

    find() {
      const one = (selector) => this.root.querySelector(selector);
      this.play = one(".play");
      this.now = one(".now");
      this.slider = one(".position");
      this.image = one(".spectrogram img");
      this.shown = one(".shown");
      this.message = one(".message");
      this.radios = this.all(".versions input");
      this.strips = this.all(".strip");
      this.cursors = this.all(".cursor");
      this.lanes = this.all(".lane");
      this.solos = this.all(".solo");
      this.mutes = this.all(".mute");
    }

    // Axes and numbers that stay.
    label() {
      this.root.querySelector(".total").textContent = `/ ${clock(this.data.seconds, 1)}`;
      const kilohertz = this.root.querySelector(".kilohertz");
      this.data.ticks.forEach(([place, name], number) => {
        const last = number === this.data.ticks.length - 1;
        kilohertz.append(this.tick(last ? `${name} kHz` : name, "bottom", place));
      });
      this.rule();
      new ResizeObserver(() => this.rule()).observe(this.slider);
    }

    tick(text, side, place) {
      const span = document.createElement("span");
      span.textContent = text;
      span.style[side] = `${100 * place}%`;
      return span;
    }

    // Seconds below the lanes: as many as there is room for, at round distances.
    rule() {
      const room = Math.max(2, Math.floor(this.slider.clientWidth / 70));
      const least = this.data.seconds / room;
      const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 3600];
      const step = steps.find((size) => size >= least) ?? 7200;
      const ruler = this.root.querySelector(".seconds");
      ruler.replaceChildren();
      for (let number = 0; number * step <= this.data.seconds; number++) {
        const seconds = number * step;
        const text = this.data.seconds < 120 ? `${Number(seconds.toFixed(1))}` : clock(seconds, 0);
        const tick = this.tick(text, "left", seconds / this.data.seconds);
        tick.classList.toggle("last", seconds / this.data.seconds > 0.97);
        ruler.append(tick);
      }
      this.root.querySelector(".time-head").textContent = this.data.seconds < 120 ? "s" : "min:s";
    }

    // ---- what is heard

    choose(version) {
      if (version < 0 || version >= this.data.versions.length) return;
      this.version = version;
      if (this.data.versions[version].mixture === null) this.divided = version;
      this.show();
    }

    // Of the mixture nothing can be left out: whoever asks for a stem hears the version that has them.
    leaveMixture() {
      if (this.data.versions[this.version].mixture !== null) this.version = this.divided;
    }

    toggleSolo(stem, together) {
      if (stem >= this.data.stems.length) return;
      const on = !this.solo.has(stem) || (!together && this.solo.size > 1);
      if (!together) this.solo.clear();
      this.solo[on ? "add" : "delete"](stem);
      if (on) this.muted.delete(stem);
      this.used = stem;
      this.leaveMixture();
      this.show();
    }

    toggleMute(stem) {
      if (stem >= this.data.stems.length) return;
      this.muted[this.muted.has(stem) ? "delete" : "add"](stem);
      this.solo.delete(stem);
      this.used = stem;
      this.leaveMixture();
      this.show();
    }

    allStems() {
      this.solo.clear();
      this.muted.clear();
      this.show();
    }

    hears(stem) {
      return this.solo.size ? this.solo.has(stem) : !this.muted.has(stem);
    }

    // 0 or 1 for each variant.
    levels() {
      const levels = this.data.versions.flatMap((version) => [version.mixture, ...version.stems]);
      const found = new Array(levels.filter((variant) => variant !== null).length).fill(0);
      const { mixture, stems } = this.data.versions[this.version];
      if (mixture !== null) found[mixture] = 1;
      else stems.forEach((variant, stem) => variant !== null && this.hears(stem) && (found[variant] = 1));
      return found;
    }

    // ---- what is seen

    show() {
      const version = this.data.versions[this.version];
      const levels = this.levels();
      this.run?.mix(levels);
      this.radios.forEach((radio, number) => (radio.checked = number === this.version));
      this.solos.forEach((button, stem) => button.setAttribute("aria-pressed", this.solo.has(stem)));
      this.mutes.forEach((button, stem) => button.setAttribute("aria-pressed", this.muted.has(stem)));
      for (const lane of this.lanes) {
        const variant = "mixture" in lane.dataset ? this.mixture() : this.data.versions[this.divided].stems[lane.dataset.stem];
        this.draw(lane, variant ?? null);
        lane.classList.toggle("unheard", !levels[variant]);
      }
      this.picture(version, levels);
    }

    mixture() {
      return this.data.versions.find((version) => version.mixture !== null)?.mixture ?? null;
    }

    // The spectrogram of the one variant that is heard, or of the mixture.
    picture(version, levels) {
      const heard = levels.flatMap((level, variant) => (level ? [variant] : []));
      const single = heard.length === 1 ? heard[0] : null;
      const variant = single ?? this.mixture() ?? heard[0] ?? 0;
      const stem = single === null ? -1 : version.stems.indexOf(variant);
      const name = stem < 0 ? "Mixture" : `${this.data.stems[stem]}, ${version.name}`;
      const source = `${this.data.folder}${variant}.png`;
      if (this.image.getAttribute("src") !== source) this.image.src = source;
      this.image.alt = `Spectrogram of ${name}, up to ${this.data.highest} kHz`;
      this.shown.textContent = name;
    }

    draw(lane, variant) {
      if (lane.dataset.drawn === String(variant)) return;
      lane.dataset.drawn = String(variant);
      lane.querySelector("svg")?.remove();
      if (variant === null) return;
      const columns = this.data.columns;
      const low = this.peaks.subarray(2 * variant * columns, (2 * variant + 1) * columns);
      const high = this.peaks.subarray((2 * variant + 1) * columns, (2 * variant + 2) * columns);
      const along = Array.from(high, (value, x) => `${x} ${-value - 0.7}`);
      const back = Array.from(low, (value, x) => `${x} ${-value + 0.7}`).reverse();
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", `0 -132 ${columns - 1} 264`);
      svg.setAttribute("preserveAspectRatio", "none");
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", `M${along.join("L")}L${back.join("L")}Z`);
      svg.append(path);
      lane.prepend(svg);
    }

    // ---- time

    position() {
      return this.run ? this.run.position() : this.at;
    }

    move() {
      const at = this.dragged ?? this.position();
      for (const cursor of this.cursors) cursor.style.left = `${(100 * at) / this.data.seconds}%`;
      this.now.textContent = clock(at, 1);
      this.slider.value = at;
      this.slider.setAttribute("aria-valuetext", `${spoken(at)} of ${spoken(this.data.seconds)}`);
    }

    frame() {
      if (!this.run) return;
      this.move();
      if (this.position() >= this.data.seconds - 1 / RATE) {
        this.pause();
        this.seek(0);
        return;
      }
      requestAnimationFrame(() => this.frame());
    }

    seek(seconds) {
      const at = clamp(seconds, 0, this.data.seconds);
      const plays = this.run !== null;
      if (plays) this.run.stop();
      this.run = null;
      this.at = at;
      if (plays && at < this.data.seconds) this.start();
      else if (plays) this.pause();
      this.move();
    }

    toggle() {
      if (this.run) this.pause();
      else this.start();
    }

    pause() {
      if (this.run) {
        this.at = this.run.position();
        this.run.stop();
        this.run = null;
      }
      this.root.classList.remove("playing");
      this.play.setAttribute("aria-label", "Play");
      this.move();
    }

    start() {
      context ??= new AudioContext({ sampleRate: RATE });
      context.resume();
      if (current !== this) current?.pause();
      current = this;
      if (this.at >= this.data.seconds) this.at = 0;
      this.message.textContent = "";
      this.root.classList.add("playing");
      this.play.setAttribute("aria-label", "Pause");
      const run = new Run(this.at, this.levels());
      this.run = run;
      this.feed(run).catch((error) => this.failed(run, error));
      // A browser without a sound device never starts its clock, and says nothing.
      const silent = new Error("the browser finds no sound output.");
      setTimeout(() => context.state !== "running" && this.failed(run, silent), 3000);
      this.frame();
    }

    failed(run, error) {
      if (run.stopped) return;
      this.pause();
      this.message.textContent = `Cannot play: ${error.message}`;
    }

    // ---- sound

    // Hands over chunk after chunk, never more than one ahead of what is heard.
    async feed(run) {
      const { chunk, chunks, guard, seconds } = this.data;
      for (let number = Math.min(Math.floor(run.from / chunk), chunks - 1); number < chunks; number++) {
        const buffers = await this.load(number);
        if (run.stopped) return;
        const begin = number * chunk;
        const from = Math.max(run.from, begin);
        run.add(buffers, from, guard + from - begin, Math.min(begin + chunk, seconds) - from);
        this.load(number + 1)?.catch(() => {}); // which is told when it is its turn
        while (run.position() < from) {
          await wait(0.2);
          if (run.stopped) return;
        }
      }
    }

    // The buffers of a chunk, one for each variant.
    load(number) {
      if (number >= this.data.chunks) return null;
      for (const old of this.chunks.keys()) if (old < number - 1 || old > number + 1) this.chunks.delete(old);
      if (!this.chunks.has(number)) {
        const loaded = this.fetched(number).then((coded) =>
          Promise.all(coded.map((sound) => context.decodeAudioData(bytes(sound).buffer))),
        );
        loaded.catch(() => this.chunks.delete(number)); // may be there at the next try
        this.chunks.set(number, loaded);
      }
      return this.chunks.get(number);
    }

    fetched(number) {
      return new Promise((kept, broken) => {
        const script = document.createElement("script");
        const gone = () => broken(new Error(`its sound is not in ${this.data.beside}. Keep that folder beside the page.`));
        script.src = `${this.data.folder}${number}.js`;
        script.onerror = gone;
        script.onload = () => {
          script.remove();
          if (this.waiting.delete(number)) gone();
        };
        this.waiting.set(number, kept);
        document.head.append(script);
      });
    }

    arrived(number, coded) {
      this.waiting.get(number)?.(coded);
      this.waiting.delete(number);
    }

    // ---- hands

    listen() {
      this.root.addEventListener("pointerdown", () => this.take(), true);
      this.root.addEventListener("focusin", () => this.take());
      this.play.addEventListener("click", () => this.toggle());
      this.radios.forEach((radio, number) => radio.addEventListener("change", () => this.choose(number)));
      this.solos.forEach((button, stem) => button.addEventListener("click", (event) => this.toggleSolo(stem, event.shiftKey)));
      this.mutes.forEach((button, stem) => button.addEventListener("click", () => this.toggleMute(stem)));
      this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
      for (const strip of this.strips) this.drag(strip);
      // After a click with the mouse the keys are for the player, not for the button.
      this.root.addEventListener("click", (event) => event.detail && document.activeElement?.blur());
    }

    // Keys are for the player that was used last; that another plays on does not change.
    take() {
      if (!current?.run) current = this;
    }

    drag(strip) {
      const place = (event) => {
        const box = strip.getBoundingClientRect();
        return clamp((event.clientX - box.left) / box.width, 0, 1) * this.data.seconds;
      };
      strip.addEventListener("pointerdown", (event) => {
        if (event.button !== 0) return;
        strip.setPointerCapture(event.pointerId);
        this.dragged = place(event);
        this.move();
      });
      strip.addEventListener("pointermove", (event) => {
        if (this.dragged === undefined) return;
        this.dragged = place(event);
        this.move();
      });
      const drop = (event) => {
        if (this.dragged === undefined) return;
        this.dragged = undefined;
        if (event.type === "pointerup") this.seek(place(event));
        else this.move(); // the touch has become a scrolling of the page
      };
      strip.addEventListener("pointerup", drop);
      strip.addEventListener("pointercancel", drop);
    }

    // Returns whether the key meant something.
    key(event) {
      const far = event.shiftKey ? 1 : 5;
      const digit = /^(?:Digit|Numpad)([0-9])$/.exec(event.code)?.[1];
      const letter = event.key.length === 1 ? "abcdefghijkl".indexOf(event.key.toLowerCase()) : -1;
      if (event.key === " ") this.toggle();
      else if (event.key === "ArrowLeft") this.seek(this.position() - far);
      else if (event.key === "ArrowRight") this.seek(this.position() + far);
      else if (event.key === "Home") this.seek(0);
      else if (digit === "0") this.allStems();
      else if (digit && event.shiftKey) this.toggleMute(digit - 1);
      else if (digit) this.toggleSolo(digit - 1, false);
      else if (event.key === "m" || event.key === "M") this.toggleMute(this.used);
      else if (letter >= 0 && letter < this.data.versions.length) this.choose(letter);
      else return false;
      return true;
    }
  }

  // Keys count where the focus is in a player or nowhere, and what a control does with a key itself comes first.
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey || event.defaultPrevented) return;
    const focus = document.activeElement;
    const inside = focus?.closest?.(".player");
    if (!inside && focus && focus !== document.body) return;
    if (event.key === " " && focus?.matches("button, [type='radio']")) return;
    if (event.key.startsWith("Arrow") && focus?.matches("[type='radio']")) return;
    const player = inside ? players.get(inside.dataset.key) : (current ?? players.values().next().value);
    if (player?.key(event)) event.preventDefault();
  });

  for (const root of document.querySelectorAll(".player")) new Player(root);
})();
