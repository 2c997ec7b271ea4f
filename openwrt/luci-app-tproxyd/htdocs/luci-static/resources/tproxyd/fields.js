'use strict';
'require baseclass';
'require form';
'require ui';
'require uci';
'require tproxyd.model as model';
'require tproxyd.parts as parts';

/*
 * Fields that several forms share. A field is added by one call: class, name, title, help, and what else it needs.
 */

function add(section, tab, type, name, title, help, more) {
	const option = tab ? section.taboption(tab, type, name, title, help) : section.option(type, name, title, help);

	Object.assign(option, { modalonly: tab ? true : null, rmempty: true }, more);

	// What is the default anyway is not written: the configuration stays as short as one would write it.
	if (type === form.ListValue && option.rmempty && option.default != null)
		option.write = function(sid, value) {
			return (value === this.default) ? uci.unset('tproxyd', sid, this.option) : uci.set('tproxyd', sid, this.option, value);
		};

	return option;
}

// The values of one of model's kinds; `!` excludes where the daemon takes that.
function like(kind, more) {
	return { validate: (sid, value) => model.looksLike(kind, value, more?.mayExclude), ...more };
}

// Adds the names that flows can be sent to.
function offerOutbounds(option, without) {
	option.value('direct', _('direct: straight out'));
	option.value('reject', _('reject: refused at once'));
	option.value('drop', _('drop: silently dropped'));

	for (const outbound of uci.sections('tproxyd', 'outbound'))
		if (outbound['.name'] !== without)
			option.value(outbound['.name'], outbound.label ? '%s (%s)'.format(outbound['.name'], outbound.label) : outbound['.name']);
}

function offerNetworks(option, networks) {
	for (const network of networks)
		option.value(network.name, network.device ? '%s (%s)'.format(network.name, network.device) : network.name);
}

// What a rule or listener matches, in one line.
function summary(section) {
	const labels = {
		proto: _('protocol'), family: _('family'), device: _('device'), network: _('network'), src_ip: _('from'),
		src_mac: _('MAC'), src_port: _('source port'), dest_ip: _('to'), dest_port: _('port'), domain: _('name'),
		start_time: _('from'), stop_time: _('until'), weekdays: _('on')
	};
	const said = Object.keys(labels)
		.filter((kind) => model.values(section[kind]).length && section[kind] !== 'any')
		.map((kind) => {
			const all = model.values(section[kind]);

			return '%s %s'.format(labels[kind], all.length > 3 ? all.slice(0, 3).join(', ') + ' …' : all.join(', '));
		});

	return said.length ? said.join('; ') : _('everything');
}

// Before something goes that others refer to, they are named; nothing goes unsaid.
function confirmRemoval(name, users, consequence, remove) {
	if (!users.length)
		return remove();

	ui.showModal(_('“%s” is in use').format(name), [
		parts.text('p', _('It is named by:')),
		E('ul', {}, users.map((user) => E('li', {}, [ user ]))),
		parts.text('p', consequence),
		E('div', { 'class': 'button-row' }, [
			parts.button(_('Keep it'), 'neutral', () => ui.hideModal()), ' ',
			parts.button(_('Delete anyway'), 'negative', () => {
				ui.hideModal();

				return remove();
			})
		])
	]);

	return Promise.resolve();
}

// A cell that is computed, and always text.
function shown(section, name, title, words) {
	const option = section.option(form.DummyValue, '_' + name, title);

	option.modalonly = false;
	option.textvalue = (sid) => {
		const content = words(uci.get('tproxyd', sid) ?? {}, sid);

		return E('span', { 'id': 'tproxyd-%s-%s'.format(name, sid) }, [ content ?? '' ]);
	};

	return option;
}

// Fills such a cell anew.
function fill(name, sid, content) {
	const cell = document.getElementById('tproxyd-%s-%s'.format(name, sid));

	if (cell)
		parts.replace(cell, content);
}

function called(section) {
	return section.label || section.name || section['.name'];
}

return baseclass.extend({
	add: add,
	like: like,
	offerOutbounds: offerOutbounds,
	offerNetworks: offerNetworks,
	summary: summary,
	confirmRemoval: confirmRemoval,
	shown: shown,
	fill: fill,
	called: called
});
