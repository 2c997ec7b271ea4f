// Pictures of the pages for the README, with traffic going through: `ci/luci shots FOLDER`. With ROUTER they are of the
// LuCI that it serves; without, of the stand-in, which has no looks.

import { join } from 'node:path';
import { Browser, sleep } from './browser.mjs';
import { begin, end, get, go, serve, visit } from './lab.mjs';

const [, , FOLDER, lang = 'en'] = process.argv;

const CONFIG = `config globals 'globals'
	option enabled '1'
	option kernel_verdicts '0'

config listener 'lan'
	option label 'Home network'
	option mode 'tproxy'
	option port '2333'
	list network 'lan'

config outbound 'home'
	option label 'My proxy'
	option type 'socks5'
	option server '198.51.100.2'
	option port '1080'
	option udp '0'

config outbound 'spare'
	option type 'socks5'
	option server '198.51.100.2'
	option port '1081'
	option enabled '1'

config set 'work'
	option label 'Networks at work'
	list entry '203.0.113.64/26'

config rule
	option name 'work'
	list dest_ip '@work'
	option outbound 'direct'

config rule
	option name 'video'
	list domain 'video.example'
	list dest_port '443'
	option outbound 'spare'

config rule
	option name 'by proxy'
	list dest_ip '203.0.113.0/27'
	option outbound 'home'

config rule
	option name 'one of these'
	list dest_ip '203.0.113.7'
	option outbound 'direct'
`;

const PICTURES = {
    en: [['overview', 1100, 860], ['rules', 1100, 700], ['servers', 1100, 620], ['overview', 390, 844, 'phone']],
    zh: [['overview', 1100, 860, 'zh']],
};

const server = await serve();
await begin(CONFIG);
const browser = await Browser.start();
let traffic = true;
const load = (async () => {
    for (let turn = 0; traffic; turn++) {
        await Promise.all([get(turn % 3 ? '203.0.113.10' : '203.0.113.70', '/blob'), get('203.0.113.10', '/blob')]).catch(() => {});
        await sleep(150 + 300 * Math.abs(Math.sin(turn / 9)));
    }
})();
try {
    const page = await visit(browser, 'overview');
    for (const [name, width, height, suffix] of PICTURES[lang]) {
        await page.size(width, height, suffix === 'phone');
        await go(page, name, lang === 'zh' ? '?lang=zh' : '');
        await sleep(name === 'overview' && !suffix ? 45_000 : suffix ? 20_000 : 5000);
        await page.shot(join(FOLDER, `${name}${suffix ? `-${suffix}` : ''}.webp`));
    }
} finally {
    traffic = false;
    await load;
    await browser.end();
    await end();
    server.kill();
}
