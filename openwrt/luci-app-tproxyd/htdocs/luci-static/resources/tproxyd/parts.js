'use strict';
'require baseclass';
'require poll';
'require ui';
'require tproxyd.daemon as daemon';
'require tproxyd.model as model';

/*
 * Pieces of pages. Text always goes into the page as text: E() takes a bare string for HTML, a list of strings for text,
 * so everything here wraps what it shows in a list.
 */

const SVG = 'http://www.w3.org/2000/svg';

// Measured by the graph, in periods: three minutes.
const GRAPH_POINTS = 60;

// After the last keystroke, in milliseconds: then the daemon is asked what it thinks.
const PAUSE = 700;

const STYLE = [
	'.tproxyd-cards{display:flex;flex-wrap:wrap;gap:1em;margin:1em 0}',
	'.tproxyd-card{flex:1 1 15em;border:1px solid rgba(128,128,128,.4);border-radius:.4em;padding:.8em;min-width:0}',
	'.tproxyd-card h4{margin:0 0 .4em}.tproxyd-card p{margin:.2em 0;overflow-wrap:anywhere}',
	'.tproxyd-big{font-size:1.5em;font-weight:bold}',
	'.tproxyd-badge{display:inline-block;line-height:1.5;border-radius:.3em;padding:0 .5em;color:#fff;background:#555}',
	'.tproxyd-badge.ok{background:#1b6e2c}.tproxyd-badge.warn{background:#8a4b00}.tproxyd-badge.fail{background:#a61b1b}',
	'.tproxyd-meter{height:.6em;border-radius:.3em;background:rgba(128,128,128,.3);overflow:hidden}',
	'.tproxyd-meter>div{height:100%;background:#1f6fb2}.tproxyd-meter>div.full{background:#a61b1b}',
	'.tproxyd-graph{width:100%;height:8em;background:rgba(128,128,128,.1)}',
	'.tproxyd-graph polyline{fill:none;stroke-width:2;vector-effect:non-scaling-stroke}',
	'.tproxyd-graph .down{stroke:#1f6fb2}.tproxyd-graph .up{stroke:#b25f00;stroke-dasharray:4 2}',
	'.tproxyd-key.down{color:#1f6fb2}.tproxyd-key.up{color:#b25f00}',
	'.tproxyd-judge{margin:.6em 0}.tproxyd-judge ul{margin:.3em 0 .3em 1.2em}',
	'.tproxyd-scroll{overflow-x:auto}.tproxyd-pre{white-space:pre-wrap;overflow-wrap:anywhere;max-height:30em;overflow-y:auto}',
	'.tproxyd-fields{display:flex;flex-wrap:wrap;gap:.6em;align-items:flex-end;margin:.6em 0}',
	'.tproxyd-fields label{display:flex;flex-direction:column;gap:.2em;font-weight:bold}',
	'.tproxyd-fields input,.tproxyd-fields select{max-width:100%}',
	'.tproxyd-choice{display:block;margin:.4em 0}'
].join('\n');

function style() {
	return E('style', {}, [ STYLE ]);
}

function text(tag, words, attributes) {
	return E(tag, attributes ?? {}, [ words ?? '' ]);
}

function badge(severity, words) {
	return E('span', { 'class': 'tproxyd-badge ' + severity }, [ words ]);
}

function button(words, kind, act, attributes) {
	return E('button', {
		'class': 'btn cbi-button cbi-button-' + kind,
		'type': 'button',
		'click': ui.createHandlerFn({}, act),
		...attributes
	}, [ words ]);
}

// Names beside values.
function card(title, ...content) {
	return E('div', { 'class': 'tproxyd-card' }, [ text('h4', title), ...content ]);
}

function meter(used, most, label) {
	const share = most > 0 ? Math.min(100, Math.round(100 * used / most)) : 0;

	return E('div', {
		'class': 'tproxyd-meter', 'role': 'meter', 'aria-label': label,
		'aria-valuemin': 0, 'aria-valuemax': 100, 'aria-valuenow': share
	}, [ E('div', { 'class': share > 90 ? 'full' : '', 'style': 'width:%d%%'.format(share) }) ]);
}

// Rows are lists of strings or nodes; titles are repeated beside the cells where the screen is narrow.
function table(titles, rows, empty) {
	const head = E('tr', { 'class': 'tr table-titles' }, titles.map((title) => E('th', { 'class': 'th', 'scope': 'col' }, [ title ])));
	const body = rows.map((cells, place) => E('tr', { 'class': 'tr cbi-rowstyle-%d'.format(place % 2 + 1) },
		cells.map((cell, column) => E('td', { 'class': 'td', 'data-title': titles[column] }, [ cell ?? '' ]))));

	if (!rows.length)
		body.push(E('tr', { 'class': 'tr placeholder' }, [ E('td', { 'class': 'td', 'colspan': titles.length }, [ E('em', {}, [ empty ]) ]) ]));

	return E('table', { 'class': 'table cbi-section-table' }, [ head, ...body ]);
}

function field(label, input) {
	return E('label', {}, [ label, input ]);
}

function input(name, attributes) {
	return E('input', { 'class': 'cbi-input-text', 'type': 'text', 'name': name, 'autocomplete': 'off', 'spellcheck': 'false', ...attributes });
}

function select(name, choices, chosen, attributes) {
	return E('select', { 'class': 'cbi-input-select', 'name': name, ...attributes }, choices.map(([ value, words ]) =>
		E('option', { 'value': value, 'selected': value === chosen ? '' : null }, [ words ])));
}

function replace(node, ...content) {
	node.replaceChildren(...content.filter((one) => one != null));
}

function notify(words, kind) {
	ui.addNotification(null, E('p', {}, [ words ]), kind ?? 'info');
}

// True if the answer was one; else its error is shown.
function went(answer) {
	if (answer.error)
		notify(answer.error, 'danger');

	return !answer.error;
}

// Asks again and again while the page is looked at.
function watch(ask, show) {
	const once = () => ask().then(show);

	poll.add(() => document.hidden ? Promise.resolve() : once(), daemon.PERIOD);

	return once;
}

// Bytes per second up and down over the last minutes, drawn without a library.
function graph() {
	const line = (kind) => {
		const node = document.createElementNS(SVG, 'polyline');

		node.setAttribute('class', kind);

		return node;
	};
	const lines = { down: line('down'), up: line('up') };
	const picture = document.createElementNS(SVG, 'svg');
	const numbers = E('p', { 'class': 'tproxyd-numbers' }, [ '' ]);
	const points = [];
	let last = null;

	picture.setAttribute('class', 'tproxyd-graph');
	picture.setAttribute('viewBox', '0 0 %d 100'.format(GRAPH_POINTS - 1));
	picture.setAttribute('preserveAspectRatio', 'none');
	picture.setAttribute('role', 'img');
	picture.setAttribute('aria-label', _('Throughput of the last minutes'));
	picture.append(lines.down, lines.up);

	const add = (up, down, now) => {
		const seconds = last ? (now - last.now) / 1000 : 0;

		// What a restart set back to zero is no rate.
		if (seconds > 0 && up >= last.up && down >= last.down)
			points.push({ up: (up - last.up) / seconds, down: (down - last.down) / seconds });

		points.splice(0, points.length - GRAPH_POINTS);
		last = { up: up, down: down, now: now };

		const peak = Math.max(1, ...points.flatMap((point) => [ point.up, point.down ]));
		const rate = points[points.length - 1] ?? { up: 0, down: 0 };

		for (const way in lines)
			lines[way].setAttribute('points', points.map((point, place) =>
				'%d,%d'.format(GRAPH_POINTS - points.length + place, Math.round(98 - 96 * point[way] / peak))).join(' '));

		replace(numbers,
			E('span', { 'class': 'tproxyd-key down' }, [ '▬ ' + _('down %s/s').format(model.bytes(rate.down)) ]), '  ',
			E('span', { 'class': 'tproxyd-key up' }, [ '╍ ' + _('up %s/s').format(model.bytes(rate.up)) ]));
	};

	return { node: E('div', {}, [ picture, numbers ]), add: add };
}

function placeOf(complaint) {
	if (!complaint.section)
		return '';

	return complaint.option ? '%s · %s: '.format(complaint.section, complaint.option) : complaint.section + ': ';
}

// The sections as they would be if this form were saved: what is typed counts, wherever there is a field for it.
function draft(map) {
	const sections = daemon.sections().map((section) => ({ ...section }));

	for (const part of map.children) {
		const ids = new Set((part.cfgsections ? part.cfgsections() : []).map(String));

		for (const section of sections) {
			if (!ids.has(section['.name']))
				continue;

			for (const option of part.children ?? [])
				if (!option.option.startsWith('_') && option.getUIElement(section['.name'])) {
					const active = option.isActive(section['.name']);
					const value = active ? option.formvalue(section['.name']) : null;

					if (value == null || value === '' || Array.isArray(value) && !value.length ||
						!Array.isArray(value) && String(value) === String(option.default) && option.rmempty !== false)
						delete section[option.option];
					else
						section[option.option] = value;
				}
		}
	}

	return sections;
}

/*
 * A place in a form where the daemon says what it thinks of what is typed. `only`: the section whose faults are meant;
 * those of others are counted, not listed.
 */
function judge(map, only) {
	if (map.readonly)
		return E('div', {}, [ '' ]);

	const node = E('div', { 'class': 'tproxyd-judge', 'role': 'status', 'aria-live': 'polite' }, [ '' ]);
	let timer = null;

	const show = (complaints) => {
		const here = complaints.filter((one) => !only || !one.section || one.section === only);
		const others = complaints.length - here.length;

		replace(node,
			here.some((one) => one.severity === 'fail') ? badge('fail', _('The daemon would refuse this:')) :
				here.length ? badge('warn', _('The daemon warns:')) : badge('ok', _('The daemon takes this.')),
			here.length ? E('ul', {}, here.map((one) =>
				E('li', {}, [ E('strong', {}, [ only ? (one.option ? one.option + ': ' : '') : placeOf(one) ]), one.text ]))) : null,
			others ? text('p', _('%d more in other sections.').format(others)) : null);
	};

	const ask = () => {
		timer = null;

		return node.isConnected ? daemon.judge(draft(map)).then(show, () => {}) : Promise.resolve();
	};

	const later = (ev) => {
		if (!node.isConnected && timer == null && ev)
			return;

		window.clearTimeout(timer);
		timer = window.setTimeout(ask, PAUSE);
	};

	for (const event of [ 'widget-change', 'input', 'change', 'cbi-dynlist-change', 'cbi-dropdown-change' ])
		document.addEventListener(event, later);

	later();

	return node;
}

// Shows it in the dialog of a section, above the fields.
function judgeDialog(section) {
	section.addModalOptions = function(modalSection, sid) {
		const map = modalSection.map;
		const render = map.renderContents;

		map.renderContents = function(...args) {
			return Promise.resolve(render.apply(this, args)).then((node) => {
				node.prepend(judge(map, sid));

				return node;
			});
		};
	};
}

// Findings of `tproxyd check`, the worst first; what mends one can be copied.
function findingList(findings) {
	const rank = { fail: 0, warn: 1, ok: 2 };
	const words = { fail: _('will not work'), warn: _('look at this'), ok: _('fine') };

	return E('div', {}, [ ...findings ].sort((a, b) => rank[a.severity] - rank[b.severity]).map((finding) =>
		E('div', { 'class': 'tproxyd-card', 'style': 'margin:.4em 0' }, [
			badge(finding.severity, words[finding.severity] ?? finding.severity), ' ', finding.text,
			finding.mend ? E('p', {}, [ _('What mends it:'), ' ', E('code', {}, [ finding.mend ]) ]) : ''
		])));
}

return baseclass.extend({
	style: style,
	text: text,
	badge: badge,
	button: button,
	card: card,
	meter: meter,
	table: table,
	field: field,
	input: input,
	select: select,
	replace: replace,
	notify: notify,
	went: went,
	watch: watch,
	graph: graph,
	draft: draft,
	judge: judge,
	judgeDialog: judgeDialog,
	findingList: findingList
});
