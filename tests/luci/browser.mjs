// A headless Chromium, driven by DevTools' protocol over a pipe: no port is opened, and no library is needed.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

// How long anything may take on a busy machine.
const PATIENCE = 60_000;

const FLAGS = [
    '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--disable-dev-shm-usage', '--no-proxy-server', '--hide-scrollbars',
    '--remote-debugging-pipe', '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 192.168.1.1', 'about:blank',
];

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

export class Browser {
    #child;
    #profile = mkdtempSync(join(tmpdir(), 'luci-'));
    #answers = new Map();
    #listeners = new Set();
    #last = 0;

    static async start(program = process.env.CHROMIUM ?? 'chromium') {
        const browser = new Browser();
        const args = [`--user-data-dir=${browser.#profile}`, ...FLAGS];
        // Its profile is its own, so that no browser of the user is touched.
        const env = { ...process.env, HOME: browser.#profile };
        browser.#child = spawn(program, args, { env, stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'] });
        browser.#read();
        return browser;
    }

    #read() {
        const chunks = [];
        this.#child.stdio[4].on('data', (chunk) => {
            let from = 0;
            for (let at = chunk.indexOf(0); at >= 0; at = chunk.indexOf(0, from)) {
                chunks.push(chunk.subarray(from, at));
                this.#take(JSON.parse(Buffer.concat(chunks.splice(0)).toString()));
                from = at + 1;
            }
            chunks.push(chunk.subarray(from));
        });
        this.#child.on('exit', (code) => {
            for (const { fail } of this.#answers.values()) fail(new Error(`Chromium ended (${code})`));
            this.#answers.clear();
        });
    }

    #take(message) {
        const waiting = this.#answers.get(message.id);
        this.#answers.delete(message.id);
        if (!waiting) for (const listener of this.#listeners) listener(message);
        else if (message.error) waiting.fail(new Error(`${waiting.method}: ${message.error.message}`));
        else waiting.done(message.result);
    }

    send(method, params = {}, sessionId = undefined) {
        const id = ++this.#last;
        this.#child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
        return new Promise((done, fail) => {
            this.#answers.set(id, { done, fail, method });
            setTimeout(() => this.#answers.delete(id) && fail(new Error(`${method} was not answered`)), PATIENCE).unref();
        });
    }

    onEvent(listener) {
        this.#listeners.add(listener);
    }

    async page() {
        const { targetId } = await this.send('Target.createTarget', { url: 'about:blank' });
        const { sessionId } = await this.send('Target.attachToTarget', { targetId, flatten: true });
        const page = new Page(this, sessionId);
        await page.begin();
        return page;
    }

    async end() {
        const gone = new Promise((done) => this.#child.on('exit', done));
        this.send('Browser.close').catch(() => {});
        const timer = setTimeout(() => this.#child.kill('SIGKILL'), 5000);
        await gone;
        clearTimeout(timer);
        rmSync(this.#profile, { recursive: true, force: true, maxRetries: 5 });
    }
}

export class Page {
    // What the page asked for: [ { url, type } ].
    requests = [];
    // What it was answered: [ { url, bytes } ].
    answers = [];
    // What it complained of.
    errors = [];
    #loads = 0;
    #urls = new Map();

    constructor(browser, session) {
        this.browser = browser;
        this.session = session;
        browser.onEvent((event) => event.sessionId === session && this.#take(event));
    }

    send(method, params) {
        return this.browser.send(method, params, this.session);
    }

    async begin() {
        for (const domain of ['Page', 'Runtime', 'Network']) await this.send(`${domain}.enable`);
    }

    #take({ method, params }) {
        if (method === 'Page.loadEventFired') this.#loads++;
        else if (method === 'Network.requestWillBeSent') this.requests.push({ url: params.request.url, type: params.type, at: params.timestamp, data: params.request.postData });
        else if (method === 'Network.responseReceived') this.#urls.set(params.requestId, params.response.url);
        else if (method === 'Network.loadingFinished') this.answers.push({ url: this.#urls.get(params.requestId) ?? '', bytes: params.encodedDataLength });
        else if (method === 'Runtime.exceptionThrown') this.errors.push(params.exceptionDetails.exception?.description ?? params.exceptionDetails.text);
        else if (method === 'Page.javascriptDialogOpening') {
            this.errors.push(`a dialog: ${params.message}`);
            this.send('Page.handleJavaScriptDialog', { accept: true });
        }
    }

    async open(url) {
        const before = this.#loads;
        await this.send('Page.navigate', { url });
        await this.#wait(async () => this.#loads > before, `${url} to load`);
    }

    size(width, height, mobile = false) {
        return this.send('Emulation.setDeviceMetricsOverride', { width, height, deviceScaleFactor: 1, mobile });
    }

    // The value of an expression of the page, awaited.
    async value(expression) {
        const { result, exceptionDetails } = await this.send('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true });
        if (exceptionDetails) throw new Error(`${expression}: ${exceptionDetails.exception?.description ?? exceptionDetails.text}`);
        return result.value;
    }

    async #wait(test, what) {
        const end = Date.now() + PATIENCE;
        for (;;) {
            const found = await test().catch(() => false);
            if (found) return found;
            if (Date.now() > end) throw new Error(`waited in vain for ${what}\n${await this.text().catch(() => '')}\n${this.errors.join('\n')}`);
            await sleep(50);
        }
    }

    until(expression, what = expression) {
        return this.#wait(() => this.value(expression), what);
    }

    text(selector = 'body') {
        return this.value(`document.querySelector(${JSON.stringify(selector)})?.innerText ?? ''`);
    }

    untilSays(words, selector = 'body') {
        return this.until(`(document.querySelector(${JSON.stringify(selector)})?.innerText ?? '').includes(${JSON.stringify(words)})`,
            `“${words}” in ${selector}`);
    }

    // Moves there and presses the button, as a hand does: once it stands still, and nothing lies over it.
    async click(selector) {
        const place = () => this.value(`(() => {
            const one = document.querySelector(${JSON.stringify(selector)});
            if (!one?.getClientRects().length) return null;
            one.scrollIntoView({ block: 'center', behavior: 'instant' });
            const box = one.getBoundingClientRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            const top = document.elementFromPoint(x, y);
            return top && (one.contains(top) || top.contains(one)) ? [x, y] : null;
        })()`);
        let last = '';
        const still = async () => {
            const now = JSON.stringify(await place());
            const same = now !== 'null' && now === last;
            last = now;
            return same ? JSON.parse(now) : null;
        };
        const [x, y] = await this.#wait(still, `${selector} to stand still in sight`);
        for (const type of ['mousePressed', 'mouseReleased'])
            await this.send('Input.dispatchMouseEvent', { type, x, y, button: 'left', clickCount: 1 });
    }

    // The first button (or link) that says this, within `where`.
    async press(words, where = 'body') {
        const find = `[...document.querySelectorAll(${JSON.stringify(`${where} button, ${where} a, ${where} summary, ${where} .cbi-dropdown li`)})].find((one) =>
            one.textContent.trim() === ${JSON.stringify(words)} && one.getClientRects().length && !one.disabled)`;
        await this.until(`!!(${find})`, `a button “${words}” in ${where}`);
        await this.value(`${find}.setAttribute('data-pressed', ${JSON.stringify(words)})`);
        await this.click(`[data-pressed=${JSON.stringify(words)}]`);
        await this.value(`document.querySelector('[data-pressed]')?.removeAttribute('data-pressed')`);
    }

    async type(selector, text) {
        await this.click(selector);
        await this.value(`document.querySelector(${JSON.stringify(selector)}).select?.()`);
        await this.send('Input.insertText', { text });
    }

    async choose(selector, value) {
        await this.until(`!!document.querySelector(${JSON.stringify(selector)})`, selector);
        await this.value(`(() => { const one = document.querySelector(${JSON.stringify(selector)}); one.value = ${JSON.stringify(value)};
            one.dispatchEvent(new Event('change', { bubbles: true })); })()`);
    }

    async key(key, code = key) {
        const text = key === 'Enter' ? '\r' : undefined;
        const number = { Enter: 13, Tab: 9, Escape: 27, ' ': 32 }[key];
        for (const type of ['keyDown', 'keyUp'])
            await this.send('Input.dispatchKeyEvent', { type, key, code, text: type === 'keyDown' ? text : undefined, windowsVirtualKeyCode: number });
    }

    // A picture of what is in sight.
    async shot(file) {
        const { data } = await this.send('Page.captureScreenshot', { format: 'webp', quality: 70 });
        writeFileSync(file, Buffer.from(data, 'base64'));
    }
}
