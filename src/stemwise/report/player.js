// What is seen and done of a song: its player's controls, pictures and keys. `sound.js` plays.
"use strict";

(() => {
  const { Song, bytes, clamp } = window.stemwise;
  const SVG = "http://www.w3.org/2000/svg";

  const players = new Map(); // by key
  let current = null; // the player that keys are for, and the only one that sounds

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
      this.song = new Song(this.data);
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
      this.song.mix(levels);
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

    move() {
      const at = this.dragged ?? this.song.position();
      for (const cursor of this.cursors) cursor.style.left = `${(100 * at) / this.data.seconds}%`;
      this.now.textContent = clock(at, 1);
      this.slider.value = at;
      this.slider.setAttribute("aria-valuetext", `${spoken(at)} of ${spoken(this.data.seconds)}`);
    }

    frame() {
      if (!this.song.plays) return;
      this.move();
      if (this.song.ended) {
        this.pause();
        this.seek(0);
        return;
      }
      requestAnimationFrame(() => this.frame());
    }

    seek(seconds) {
      const at = clamp(seconds, 0, this.data.seconds);
      const { plays } = this.song;
      this.song.stop(at);
      if (plays && at < this.data.seconds) this.start();
      else if (plays) this.pause();
      this.move();
    }

    toggle() {
      if (this.song.plays) this.pause();
      else this.start();
    }

    pause() {
      this.song.stop();
      this.root.classList.remove("playing");
      this.play.setAttribute("aria-label", "Play");
      this.move();
    }

    start() {
      if (current !== this) current?.pause();
      current = this;
      this.message.textContent = "";
      this.root.classList.add("playing");
      this.play.setAttribute("aria-label", "Pause");
      this.song.start(this.levels(), (error) => {
        this.pause();
        this.message.textContent = `Cannot play: ${error.message}`;
      });
      this.frame();
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
      if (!current?.song.plays) current = this;
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
      else if (event.key === "ArrowLeft") this.seek(this.song.position() - far);
      else if (event.key === "ArrowRight") this.seek(this.song.position() + far);
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
