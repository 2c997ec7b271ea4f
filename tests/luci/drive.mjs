// The pages in a real browser on a client's side of a real router: what its owner does, and what comes of it. Run by
// `ci/luci drive` in the client's namespace.

import { existsSync, readFileSync } from 'node:fs';
import { connect } from 'node:net';
import { Browser, sleep } from './browser.mjs';
import { begin, CONFIG, end, get, go, hold, lease, macOf, serve, SITE, status, until, visit as visitWith } from './lab.mjs';

const PAGES = ['overview', 'servers', 'rules', 'sets', 'devices', 'sessions', 'check', 'advanced'];

// A page's own JavaScript may have this many bytes.
const MOST_SCRIPT = 60 * 1024;

// What is direct goes through the process here, so that it is seen to arrive.
const LISTENER = "config globals 'globals'\n\toption enabled '1'\n\toption kernel_verdicts '0'\n\nconfig listener 'lan'\n\toption mode 'tproxy'\n\toption port '2333'\n\tlist network 'lan'\n";
const PROXY = "\nconfig outbound 'proxy'\n\toption type 'socks5'\n\toption server '198.51.100.2'\n\toption port '1080'\n\toption udp '0'\n";

const tests = [];
// Each has a router of its own, with that configuration.
const test = (name, config, body) => tests.push({ name, config, body });

function check(found, what) {
    if (!found) throw new Error(what);
}

function equal(found, wanted, what) {
    check(JSON.stringify(found) === JSON.stringify(wanted), `${what}: ${JSON.stringify(found)}, not ${JSON.stringify(wanted)}`);
}

// ---- the browser

let browser = null;

const visit = (...words) => visitWith(browser, ...words);

// The id of a field of a dialog's section, whose name may be one that was made up.
const field = (option) => `.modal [id$="-${option}"]`;

// Brings the tab of a field to the front, where the dialog has tabs.
async function reveal(page, option) {
    const tab = await page.until(`(() => { const one = document.querySelector(${JSON.stringify(field(option))});
        return one && (one.closest('[data-tab-active="false"]')?.dataset.tab ?? 'here'); })()`, `the field ${option}`);
    if (tab !== 'here') await page.click(`.modal .cbi-tabmenu [data-tab="${tab}"] a`);
}

async function list(page, option, ...values) {
    await reveal(page, option);
    for (const value of values) {
        await page.type(`${field(option)} .add-item input`, value);
        await page.key('Enter');
        await page.until(`[...document.querySelectorAll(${JSON.stringify(`${field(option)} .item`)})].some((one) => one.innerText.includes(${JSON.stringify(value)}))`, `${value} in the list`);
    }
}

async function apply(page) {
    await page.value(`window.before = true`);
    await page.press('Save & Apply');
    await page.until(`window.before === undefined && document.querySelector('#view h2')`, 'the page after its changes were applied');
}

const row = (words) => `[...document.querySelectorAll('.cbi-section-table-row')].find((one) => one.innerText.includes(${JSON.stringify(words)}))`;

async function pressIn(page, words, button) {
    await page.until(`!!${row(words)}`, `a row “${words}”`);
    await page.value(`${row(words)}.id ||= 'row'`);
    await page.press(button, `[id=${JSON.stringify(await page.value(`${row(words)}.id`))}]`);
}

// ---- what is shown

test('the overview says that it runs, what it takes and what went through', LISTENER, async () => {
    equal((await get('203.0.113.10')).slice(0, 5), 'hello', 'the server');
    const page = await visit('overview');
    await page.untilSays('running', '#tproxyd-state');
    await page.untilSays('lan: lan, tproxy');
    await page.until(`/direct[\\s\\S]*up[\\s\\S]*B/.test(document.querySelector('#view').innerText)`, 'the way out');
    check(status().outbounds[0].bytes_down > 0, 'nothing was relayed');
    return page;
});

test('a rule is added, saved, applied, taken by the daemon, and counted', LISTENER, async () => {
    const page = await visit('rules');
    await page.press('Add a rule');
    await page.type(`${field('name')} input`, 'from the browser');
    await list(page, 'dest_ip', '203.0.113.10');
    await page.choose(`${field('outbound')} select`, 'reject');
    await page.press('Save', '.modal');
    await page.untilSays('from the browser');
    await apply(page);
    await until(() => status()?.rules[0]?.name === 'from the browser', 'the daemon to take it');
    await get('203.0.113.10').then(() => check(false, 'it was not refused'), () => {});
    equal((await get('203.0.113.20')).slice(0, 5), 'hello', 'another server');
    await page.until(`+document.querySelector('[id^="tproxyd-hits-"]').innerText > 0`, 'its hits');
    return page;
});

test('save and apply cuts no connection', LISTENER, async () => {
    const [held] = await hold(1);
    let cut = false;
    held.on('close', () => { cut = true; });
    const page = await visit('rules');
    await page.press('Add a rule');
    await page.type(`${field('name')} input`, 'another');
    await page.choose(`${field('outbound')} select`, 'drop');
    await list(page, 'dest_port', '9');
    await page.press('Save', '.modal');
    await apply(page);
    await until(() => status()?.rules[0]?.name === 'another', 'the daemon to take it');
    check(!cut, 'the connection was cut');
    equal(status().tcp.active >= 1, true, 'a live session');
    held.destroy();
    return page;
});

test('what only the daemon can know is said while one types', LISTENER, async () => {
    const page = await visit('rules');
    await page.press('Add a rule');
    await page.choose(`${field('outbound')} select`, 'direct');
    await page.untilSays('The daemon takes this', '.modal .tproxyd-judge');
    await list(page, 'dest_ip', '@nowhere');
    await page.untilSays('nowhere', '.modal .tproxyd-judge li');
    await page.untilSays('would refuse', '.modal .tproxyd-judge');
    return page;
});

test('a value that is none is marked as one types, and not saved', `${LISTENER}${PROXY}`, async () => {
    const page = await visit('servers');
    await pressIn(page, 'proxy', 'Edit');
    await page.type(`${field('port')} input`, '99999');
    await page.press('Save', '.modal');
    await sleep(500);
    check(await page.value(`!!document.querySelector('.modal')`), 'the dialog closed over an invalid value');
    equal(status().outbounds.find((one) => one.name === 'proxy').name, 'proxy', 'the daemon');
    return page;
});

test('a configuration that cannot be used: the overview says what is wrong, and where', `${LISTENER}\nconfig rule\n\toption outbound 'nowhere'\n`, async () => {
    const page = await visit('overview');
    await page.untilSays('not running', '#tproxyd-state');
    await page.untilSays(`outbound 'nowhere'`);
    return page;
});

test('a rule that can never match is marked', `${LISTENER}\nconfig rule\n\toption name 'wide'\n\tlist dest_ip '203.0.113.0/24'\n\toption outbound 'direct'\n\nconfig rule\n\toption name 'narrow'\n\tlist dest_ip '203.0.113.7'\n\toption outbound 'reject'\n`, async () => {
    const page = await visit('rules');
    await page.until(`${row('narrow')}?.innerText.includes('never matches')`, 'the mark');
    check(!await page.value(`${row('wide')}.innerText.includes('never matches')`), 'the rule above is marked');
    return page;
});

test('what becomes of a connection is explained', `${LISTENER}\nconfig rule\n\toption name 'wide'\n\tlist dest_ip '203.0.113.0/24'\n\toption outbound 'direct'\n`, async () => {
    const page = await visit('rules');
    await page.type('[name="explain-src"]', '192.168.1.2:40000');
    await page.type('[name="explain-dst"]', '203.0.113.9:443');
    await page.key('Enter');
    await page.untilSays('wide', '#tproxyd-explanation');
    return page;
});

test('servers are added from links, and traffic goes through them', `${LISTENER}\nconfig rule\n\tlist dest_ip '203.0.113.20'\n\toption outbound 'direct'\n`, async () => {
    const page = await visit('servers');
    await page.press('Paste links…');
    await page.type('[name="links"]', 'socks5://198.51.100.2:1080#Home\nnonsense');
    await page.press('Add', '.modal');
    await page.untilSays('no link', '.modal');
    await page.press('Dismiss', '.modal');
    await page.untilSays('198.51.100.2:1080');
    await apply(page);
    await until(() => status()?.outbounds.some((one) => one.name === 'home'), 'the daemon to take it');
    await go(page, 'rules');
    await page.until(`document.querySelector('select[id$=".default"]')`, 'the choice of the rest');
    await page.choose('select[id$=".default"]', 'home');
    await apply(page);
    // The proxy has the server's address too.
    await until(async () => await get('203.0.113.10') === 'hello ::ffff:203.0.113.10', 'traffic by the proxy');
    await until(() => status().outbounds.find((one) => one.name === 'home').bytes_down > 0, 'bytes through the proxy');
    return page;
});

test('servers are tried before anything is saved', `${LISTENER}${PROXY}`, async () => {
    const page = await visit('servers');
    await page.press('Try these servers now');
    await page.until(`/fine|look at this|will not work|Nothing is wrong/.test(document.querySelector('#view').innerText)`, 'findings');
    return page;
});

test('an outbound in use is not deleted unsaid', `${LISTENER}${PROXY}\nconfig rule\n\toption name 'by proxy'\n\toption outbound 'proxy'\n`, async () => {
    const page = await visit('servers');
    await pressIn(page, '198.51.100.2', 'Delete');
    await page.untilSays('by proxy', '.modal');
    await page.press('Keep it', '.modal');
    await page.untilSays('198.51.100.2:1080');
    await pressIn(page, '198.51.100.2', 'Delete');
    await page.press('Delete anyway', '.modal');
    await page.until(`!document.querySelector('#view').innerText.includes('198.51.100.2:1080')`, 'it to be gone');
    await apply(page);
    await until(() => status()?.rules[0]?.outbound === 'direct', 'the rule to go elsewhere');
    return page;
});

test('a listener that would cut off this page is refused', LISTENER, async () => {
    const page = await visit('advanced');
    await pressIn(page, 'lan', 'Edit');
    await page.type(`${field('port')} input`, '80');
    await page.press('Save', '.modal');
    await sleep(500);
    check(await page.value(`!!document.querySelector('.modal')`), 'port 80 was taken');
    await page.type(`${field('port')} input`, '2334');
    await list(page, 'device', 'wan0');
    await page.press('Save', '.modal');
    await sleep(500);
    check(await page.value(`!!document.querySelector('.modal')`), 'the way to the Internet was taken');
    return page;
});

test('from nothing to the first intercepted connection in three clicks', "config globals 'globals'\n\toption enabled '0'\n\toption kernel_verdicts '0'\n\nconfig listener 'lan'\n\toption mode 'tproxy'\n\toption port '2333'\n\tlist network 'lan'\n", async () => {
    check(status() == null, 'it runs already');
    // One: the menu.
    const page = await visit('overview');
    await page.untilSays('switched off');
    // Two: try it.
    await page.click('#tproxyd-try');
    await page.until(`/fine/.test(document.querySelector('#tproxyd-guide-told').innerText)`, 'findings');
    // Three: enable it.
    await page.click('#tproxyd-enable');
    await until(status, 'the daemon to run');
    await get('203.0.113.10');
    await until(() => status().listeners[0].accepted > 0, 'an intercepted connection');
    await page.untilSays('running', '#tproxyd-state');
    return page;
});

test('a preset asks for what it needs, and writes plain UCI', "config globals 'globals'\n\toption enabled '0'\n", async () => {
    const page = await visit('overview');
    await page.choose('[name="guide-way"]', 'socks5');
    await page.click('#tproxyd-enable');
    await page.untilSays('Say server and port', '#tproxyd-guide-told');
    await page.type('[name="guide-server"]', '198.51.100.2');
    await page.type('[name="guide-port"]', '1080');
    await page.choose('[name="guide-preset"]', 'country');
    await page.click('#tproxyd-enable');
    await page.untilSays('list of the country', '#tproxyd-guide-told');
    await page.type('[name="guide-list"]', '203.0.113.128/25');
    await page.click('#tproxyd-enable');
    await until(status, 'the daemon to run');
    equal(await get('203.0.113.10'), 'hello ::ffff:203.0.113.10', 'by the proxy, which has that address too');
    // As the kernel forwards it; the proxy would have been seen as 203.0.113.200.
    equal(await get('203.0.113.200'), 'hello ::ffff:192.168.1.2', 'direct');
    await page.untilSays('running', '#tproxyd-state');
    return page;
});

// What a preset asks for, and what shows that it does what it says: 203.0.113.10 is the proxy's own address, too, so what
// goes by it is seen to come from there.
const PRESETS = [
    ['everything', async () => {}, async () => equal(await get('203.0.113.10'), 'hello ::ffff:203.0.113.10', 'by the proxy')],
    ['names', (page) => page.type('[name="guide-names"]', 'chosen.example'), async () => {
        equal(await get('203.0.113.10'), 'hello ::ffff:198.51.100.1', 'another name, direct');
        equal(await get('203.0.113.10', '/', 'chosen.example'), 'hello ::ffff:203.0.113.10', 'the name, by the proxy');
    }],
    ['night', async (page) => {
        // a night that began an hour ago and ends in an hour; the daemon's zone is this machine's
        const hour = (offset) => new Date(Date.now() + offset * 3_600_000).toTimeString().slice(0, 5);
        await page.type('[name="guide-start"]', hour(-1));
        await page.type('[name="guide-stop"]', hour(1));
        await page.click('[name="guide-device"]');
    }, async () => {
        await get('203.0.113.10').then(() => check(false, 'it was not blocked'), () => {});
        equal(status().rules[0].outbound, 'reject', 'the rule');
    }],
    ['devices', (page) => page.click('[name="guide-device"]'), async () => equal(await get('203.0.113.10'), 'hello ::ffff:203.0.113.10', 'this device, by the proxy')],
];

for (const [preset, give, proves] of PRESETS) {
    test(`the preset “${preset}” does what it says`, "config globals 'globals'\n\toption enabled '0'\n", async () => {
        await lease({ macaddr: macOf('eth0').toUpperCase(), ipaddr: '192.168.1.2', hostname: 'laptop' });
        const page = await visit('overview');
        await page.choose('[name="guide-way"]', 'socks5');
        await page.type('[name="guide-server"]', '198.51.100.2');
        await page.type('[name="guide-port"]', '1080');
        await page.choose('[name="guide-preset"]', preset);
        await give(page);
        await page.click('#tproxyd-enable');
        await until(status, 'the daemon to run');
        await proves();
        return page;
    });
}

test('the country of a preset is fetched, and its list is shown with entries and age', "config globals 'globals'\n\toption enabled '0'\n", async () => {
    const page = await visit('overview');
    await page.choose('[name="guide-way"]', 'socks5');
    await page.type('[name="guide-server"]', '198.51.100.2');
    await page.type('[name="guide-port"]', '1080');
    await page.choose('[name="guide-preset"]', 'country');
    await page.type('[name="guide-list"]', 'http://203.0.113.10/country');
    await page.value(`window.before = true`);
    await page.click('#tproxyd-enable');
    await until(status, 'the daemon to run');
    // LuCI asks once more whether the router can still be reached, and then opens the page anew
    await page.until(`window.before === undefined && document.querySelector('#tproxyd-state')`, 'the page to be opened anew');
    equal(status().sets[0].entries, 0, 'entries before');
    await go(page, 'sets');
    await page.press('Update now');
    await page.untilSays('fetched, 2 lines');
    equal(status().sets[0].entries, 2, 'entries after');
    await page.until(`document.querySelector('#tproxyd-loaded-country').innerText === '2'`, 'its entries');
    equal(await get('203.0.113.200'), 'hello ::ffff:192.168.1.2', 'direct, as the list says');
    return page;
});

test('sessions are paged by the daemon, and one is ended', LISTENER, async () => {
    const held = await hold(60);
    const page = await visit('sessions');
    await page.until(`document.querySelectorAll('#tproxyd-sessions tr').length === 51`, 'fifty rows and their titles');
    await page.press('Next');
    await page.until(`document.querySelectorAll('#tproxyd-sessions tr').length > 5 && document.querySelectorAll('#tproxyd-sessions tr').length < 15`, 'the other ten');
    await page.press('End', '#tproxyd-sessions tr:nth-child(2)');
    await until(() => status().tcp.active === 59, 'one to end');
    await page.type('[name="filter-client"]', '192.168.1.77');
    await page.key('Enter');
    await page.untilSays('No sessions.');
    held.forEach((socket) => socket.destroy());
    return page;
});

test('five thousand sessions cost the browser a page of them', LISTENER.replace("\n\nconfig listener", "\n\toption tcp_sessions '6000'\n\nconfig listener"), async () => {
    const held = [];
    while (held.length < 5000) held.push(...await hold(250));
    const page = await visit('sessions');
    await page.until(`document.querySelectorAll('#tproxyd-sessions tr').length === 51`, 'fifty rows and their titles');
    for (let n = 1; n < 5; n++) {
        await page.press('Next');
        await page.untilSays(`${50 * n + 1} to ${50 * n + 50}`);
    }
    equal(status().tcp.active, 5000, 'live sessions');
    check(await page.value(`document.querySelectorAll('#view *').length`) < 1500, 'the page has too many elements');
    const answers = page.answers.filter((one) => one.url.includes('/ubus')).map((one) => one.bytes);
    check(answers.length > 4 && Math.max(...answers) < 32 * 1024, `bytes of the answers: ${answers}`);
    await go(page, 'overview');
    await page.untilSays('5000');
    held.forEach((socket) => socket.destroy());
    return page;
});

test('a device is called by its name, and blocked and freed with one choice each', LISTENER, async () => {
    const mac = macOf('eth0');
    await lease({ macaddr: mac.toUpperCase(), ipaddr: '192.168.1.2', hostname: 'laptop' });
    equal((await get('203.0.113.10')).slice(0, 5), 'hello', 'before');
    const page = await visit('devices');
    await page.untilSays('laptop', '#tproxyd-devices');
    await page.until(`/laptop[\\s\\S]* B/.test(document.querySelector('#tproxyd-devices').innerText)`, 'its traffic');
    await page.choose(`[name="device-${mac}"]`, 'reject');
    await until(() => status()?.rules[0]?.outbound === 'reject', 'the rule');
    await get('203.0.113.10').then(() => check(false, 'it was not blocked'), () => {});
    await page.until(`document.querySelector('[name="device-${mac}"]')?.value === 'reject' && !(document.querySelector('.modal')?.innerText && document.querySelector('.modal').getClientRects().length)`, 'the choice shown');
    await page.choose(`[name="device-${mac}"]`, '');
    await until(() => status()?.rules.length === 0, 'the rule to go');
    equal((await get('203.0.113.10')).slice(0, 5), 'hello', 'after');
    return page;
});

test('nothing that comes from the network becomes HTML', `${LISTENER}\nconfig outbound 'bad'\n\toption type 'socks5'\n\toption label '<img src=x onerror=alert(1)>'\n\toption server '198.51.100.2'\n\toption port '1080'\n\nconfig rule\n\toption name '<img src=x onerror=alert(2)>'\n\tlist domain 'never.example'\n\toption outbound 'bad'\n`, async () => {
    const socket = connect(80, '203.0.113.10', () => socket.write('GET /hold HTTP/1.1\r\nHost: <img/src=x>.example\r\n\r\n'));
    await new Promise((done) => socket.once('data', done));
    const page = await visit('overview');
    for (const name of ['overview', 'servers', 'devices', 'sessions', 'rules']) {
        await go(page, name);
        await sleep(700);
        equal(await page.value(`document.querySelectorAll('img[src="x"]').length`), 0, `images in ${name}`);
        equal(page.errors, [], `what ${name} complains of`);
    }
    socket.destroy();
    await pressIn(page, 'never.example', 'Edit');
    await sleep(500);
    equal(await page.value(`document.querySelectorAll('img[src="x"]').length`), 0, 'images in the dialog');
    return page;
});

test('who may only read can change nothing, in the page or past it', LISTENER, async () => {
    const [held] = await hold(1);
    const page = await visit('sessions', 'viewer');
    await page.untilSays('203.0.113.10');
    check(await page.value(`[...document.querySelectorAll('#tproxyd-sessions button')].every((one) => one.disabled)`), 'a session can be ended');
    const session = await page.value(`(window.STANDIN?.session) ?? L.env.sessionid`);
    const code = async (object, method, args) => {
        const request = { jsonrpc: '2.0', id: 1, method: 'call', params: [session, object, method, args] };
        const { result, error } = JSON.parse(await page.value(`fetch('/ubus/', { method: 'POST', body: ${JSON.stringify(JSON.stringify(request))} }).then((one) => one.text())`));
        return error ? 'denied' : result[0] === 6 ? 'denied' : 'allowed';
    };
    equal(await code('tproxyd', 'status', {}), 'allowed', 'status');
    equal(await code('tproxyd', 'kick', { client: '192.168.1.2' }), 'denied', 'kick');
    equal(await code('tproxyd', 'reload', {}), 'denied', 'reload');
    equal(await code('tproxyd', 'validate', { config: '' }), 'denied', 'validate');
    equal(await code('uci', 'set', { config: 'tproxyd', section: 'globals', values: { enabled: '0' } }), 'denied', 'uci set');
    equal(await code('file', 'exec', { command: '/usr/sbin/tproxyd', params: ['check', '--json'] }), 'allowed', 'check');
    equal(await code('file', 'exec', { command: '/usr/sbin/tproxyd', params: ['clear'] }), 'denied', 'clear');
    equal(await code('file', 'exec', { command: '/etc/init.d/tproxyd', params: ['restart'] }), 'denied', 'restart');
    equal(status().tcp.active, 1, 'live sessions');
    held.destroy();
    return page;
});

test('a page is small, asks nobody else, and asks seldom', LISTENER, async () => {
    const page = await visit('overview');
    for (const name of PAGES) {
        await go(page, name);
        await sleep(200);
        const foreign = page.requests.filter((one) => !one.url.startsWith(SITE) && !one.url.startsWith('data:'));
        equal(foreign, [], `what ${name} asks of others`);
        const own = page.requests.map((one) => one.url.split('?')[0]).filter((url) => /\/luci-static\/resources\/(view\/)?tproxyd\//.test(url));
        const sizes = await Promise.all([...new Set(own)].map(async (url) => (await (await fetch(url)).arrayBuffer()).byteLength));
        const sum = sizes.reduce((all, one) => all + one, 0);
        check(own.length > 0 && sum <= MOST_SCRIPT, `${name} has ${sum} bytes of JavaScript`);
    }
    await go(page, 'overview');
    const asked = () => page.requests.filter((one) => one.data?.includes('"tproxyd","status"')).length;
    await page.untilSays('running', '#tproxyd-state');
    const before = asked();
    await sleep(6500);
    check(asked() - before <= 3, `${asked() - before} times in 6.5 s`);
    await page.value(`Object.defineProperty(document, 'hidden', { value: true })`);
    const hidden = asked();
    await sleep(4000);
    check(asked() - hidden <= 1, 'it asks although nobody looks');
    return page;
});

test('pages fit a phone, and can be used by keyboard', `${LISTENER}${PROXY}\nconfig rule\n\toption name 'some'\n\tlist dest_ip '203.0.113.0/24'\n\toption outbound 'proxy'\n`, async () => {
    const page = await visit('overview');
    await page.size(375, 700, true);
    for (const name of PAGES) {
        await go(page, name);
        await page.until(`document.documentElement.scrollWidth <= 376`, `${name} to be as narrow as a phone`);
        const nameless = await page.value(`[...document.querySelectorAll('#view input, #view select, #view textarea')].filter((one) =>
            one.getClientRects().length && !one.labels?.length && !one.getAttribute('aria-label') && !one.closest('.cbi-section-create, .cbi-dropdown, .cbi-checkbox, .cbi-dynlist') && !one.placeholder).map((one) => one.outerHTML)`);
        equal(nameless, [], `fields of ${name} without a label`);
    }
    await go(page, 'check');
    await page.until(`/fine/.test(document.querySelector('#tproxyd-findings').innerText)`, 'findings');
    for (let steps = 0; await page.value(`document.activeElement.innerText?.trim() !== 'Check again'`); steps++) {
        check(steps < 60, 'no number of tabs leads to the button');
        await page.key('Tab');
    }
    await page.value(`document.querySelector('#tproxyd-findings').replaceChildren('')`);
    await page.key('Enter');
    await page.until(`/fine/.test(document.querySelector('#tproxyd-findings').innerText)`, 'findings anew');
    return page;
});

test('labels, roles and contrast are as WCAG asks', `${LISTENER}${PROXY}\nconfig rule\n\toption name 'some'\n\tlist dest_ip '203.0.113.0/24'\n\toption outbound 'proxy'\n\nconfig set 'nets'\n\toption type 'net'\n\tlist entry '203.0.113.0/24'\n`, async () => {
    const axe = readFileSync(`${process.env.TOOLS}/node_modules/axe-core/axe.min.js`, 'utf8');
    const page = await visit('overview');
    const [held] = await hold(1);
    const faults = async (where) => JSON.parse(await page.value(`axe.run({ include: ${JSON.stringify(where)}, exclude: ['.cbi-section-create', '.cbi-checkbox', '.cbi-dynlist', '.cbi-dropdown'] }, { runOnly: ['wcag2a', 'wcag2aa'] }).then(({ violations, passes }) =>
        JSON.stringify([passes.length, violations.flatMap((one) => one.nodes.map((node) => one.id + ': ' + node.html + ' ' + node.failureSummary))]))`));
    for (const name of PAGES) {
        await go(page, name);
        await sleep(500);
        await page.value(`${axe};0`);
        const [passes, found] = await faults('#view');
        check(passes > 3, `${name}: only ${passes} rules applied`);
        equal(found, [], `accessibility of ${name}`);
    }
    await go(page, 'servers');
    await page.value(`${axe};0`);
    await pressIn(page, 'proxy', 'Edit');
    await page.until(`document.querySelector(${JSON.stringify(field('server'))})`, 'the dialog');
    equal((await faults('.modal'))[1], [], 'accessibility of the dialog');
    held.destroy();
    return page;
});

test('it speaks Chinese', LISTENER, async () => {
    const page = await visit('overview', 'root', '?lang=zh');
    await page.until(`/运行中/.test(document.querySelector('#tproxyd-state').innerText)`, 'running, in Chinese');
    const english = await page.value(`document.querySelector('#view').innerText.match(/[A-Za-z]{4,}/g) ?? []`);
    equal([...new Set(english)].filter((word) => !['tproxy', 'tproxyd', 'direct', 'socks5'].includes(word)), [], 'words left in English');
    return page;
});

// ---- in order, each with a router of its own

const wanted = process.env.ONLY;
const failed = [];
const server = await serve();
// The browser itself may hang on a busy machine, which says nothing of the pages: it gets a second chance, and that is said.
const isBrowsers = (error) => /was not answered|Chromium ended/.test(error.message);

async function attempt({ config, body }) {
    browser = await Browser.start();
    try {
        await begin(config);
        const page = await body();
        equal(page.errors, [], 'what the page complains of');
        return null;
    } catch (error) {
        return error;
    } finally {
        await end().catch(() => {});
        await browser.end();
    }
}

for (const one of tests) {
    if (wanted && !one.name.includes(wanted)) continue;
    const began = Date.now();
    let error = await attempt(one);
    if (error && isBrowsers(error)) {
        console.log(`again ${one.name}: ${error.message}`);
        error = await attempt(one);
    }
    if (!error) {
        console.log(`ok    ${one.name} (${((Date.now() - began) / 1000).toFixed(1)} s)`);
        continue;
    }
    failed.push(one.name);
    console.log(`FAIL  ${one.name}\n${String(error.stack)}`);
    for (const file of [CONFIG, `${CONFIG}.reloads`, `${CONFIG}.log`]) if (existsSync(file)) console.log(`-- ${file}\n${readFileSync(file, 'utf8').slice(-4000)}`);
}
server.kill();
console.log(failed.length ? `${failed.length} failed` : 'all passed');
process.exit(failed.length ? 1 : 0);
