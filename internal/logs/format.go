// SPDX-License-Identifier: Apache-2.0

package logs

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// timeLayout is RFC 3339 with microseconds; times are UTC (contract 14.2).
const timeLayout = "2006-01-02T15:04:05.000000Z"

// appendPlain renders the format of contract 14.2:
//
//	<time>\t<level>\t<target>[:span{field=value …}]…[\t<message>\t<k=v k=v …>]\n
//
// Without a message its tab is left out too, as the reference does.
func appendPlain(buf []byte, l *line) []byte {
	buf = l.time.UTC().AppendFormat(buf, timeLayout)
	buf = append(buf, '\t')
	buf = append(buf, l.level...)
	buf = append(buf, '\t')
	buf = append(buf, strings.TrimPrefix(l.target, prefix)...)
	for _, s := range l.spans {
		buf = append(buf, ':')
		buf = append(buf, s.name...)
		if len(s.fields) > 0 {
			buf = append(buf, '{')
			buf = appendFields(buf, s.fields)
			buf = append(buf, '}')
		}
	}
	if l.message != "" || len(l.fields) > 0 {
		buf = append(buf, '\t')
		if l.message != "" {
			buf = appendBare(buf, l.message)
			buf = append(buf, '\t')
		}
		buf = appendFields(buf, l.fields)
	}
	return append(buf, '\n')
}

func appendFields(buf []byte, fields []field) []byte {
	for i, f := range fields {
		if i > 0 {
			buf = append(buf, ' ')
		}
		buf = append(buf, f.name...)
		buf = append(buf, '=')
		if f.value.Kind() == slog.KindString {
			buf = appendQuoted(buf, f.value.String())
			continue
		}
		buf = appendBare(buf, text(f.value))
	}
	return buf
}

// text is the form of a value that stands without quotes.
func text(v slog.Value) string {
	if v.Kind() == slog.KindTime {
		return v.Time().UTC().Format(timeLayout)
	}
	return v.String() // of an any: its Error, its String, or %+v
}

// appendBare appends s but for what would end the line, which a peer must not
// be able to do by a name it chose.
func appendBare(buf []byte, s string) []byte {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if unicode.IsControl(r) {
			buf = appendEscaped(buf, r)
		} else {
			buf = append(buf, s[i:i+size]...)
		}
		i += size
	}
	return buf
}

// appendQuoted appends s in double quotes, escaped as the reference's debug
// form does, which differs from Go's in \0 and \u{…}.
func appendQuoted(buf []byte, s string) []byte {
	buf = append(buf, '"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			buf = append(buf, '\\', byte(r))
		case r == ' ' || unicode.IsPrint(r):
			buf = utf8.AppendRune(buf, r)
		default:
			buf = appendEscaped(buf, r)
		}
	}
	return append(buf, '"')
}

func appendEscaped(buf []byte, r rune) []byte {
	switch r {
	case 0:
		return append(buf, `\0`...)
	case '\t':
		return append(buf, `\t`...)
	case '\r':
		return append(buf, `\r`...)
	case '\n':
		return append(buf, `\n`...)
	default:
		buf = append(buf, `\u{`...)
		buf = strconv.AppendInt(buf, int64(r), 16)
		return append(buf, '}')
	}
}

// appendJSON renders the format of contract 14.3: one object, its keys in the
// order level, time, scope, message, fields, spans.
func appendJSON(buf []byte, l *line) []byte {
	buf = append(buf, `{"level":"`...)
	buf = append(buf, l.level...)
	buf = append(buf, `","time":"`...)
	buf = l.time.UTC().AppendFormat(buf, timeLayout)
	buf = append(buf, `","scope":`...)
	buf = appendJSONString(buf, l.target)
	if l.message != "" {
		buf = append(buf, `,"message":`...)
		buf = appendJSONString(buf, l.message)
	}
	buf = appendJSONFields(buf, l.fields, false)
	for _, s := range l.spans {
		buf = append(buf, ',')
		buf = appendJSONString(buf, s.name)
		buf = append(buf, ':', '{')
		buf = appendJSONFields(buf, s.fields, true)
		buf = append(buf, '}')
	}
	return append(buf, '}', '\n')
}

// appendJSONFields writes members, each after a comma but, in an object that
// begins with them, the first.
func appendJSONFields(buf []byte, fields []field, first bool) []byte {
	for i, f := range fields {
		if i > 0 || !first {
			buf = append(buf, ',')
		}
		buf = appendJSONString(buf, f.name)
		buf = append(buf, ':')
		buf = appendJSONValue(buf, f.value)
	}
	return buf
}

func appendJSONValue(buf []byte, v slog.Value) []byte {
	switch v.Kind() {
	case slog.KindBool:
		return strconv.AppendBool(buf, v.Bool())
	case slog.KindInt64:
		return strconv.AppendInt(buf, v.Int64(), 10)
	case slog.KindUint64:
		return strconv.AppendUint(buf, v.Uint64(), 10)
	case slog.KindFloat64:
		if b, err := json.Marshal(v.Float64()); err == nil {
			return append(buf, b...)
		}
		return appendJSONString(buf, fmt.Sprint(v.Float64())) // NaN and infinities have no JSON form
	default:
		return appendJSONString(buf, text(v))
	}
}

// appendJSONString leaves <, > and & as they are, as other JSON logs do.
func appendJSONString(buf []byte, s string) []byte {
	const hex = "0123456789abcdef"
	buf = append(buf, '"')
	for _, r := range s { // bytes that are not UTF-8 come out as U+FFFD
		switch {
		case r == '"' || r == '\\':
			buf = append(buf, '\\', byte(r))
		case r == '\n':
			buf = append(buf, '\\', 'n')
		case r == '\r':
			buf = append(buf, '\\', 'r')
		case r == '\t':
			buf = append(buf, '\\', 't')
		case r < ' ':
			buf = append(buf, '\\', 'u', '0', '0', hex[r>>4], hex[r&15])
		default:
			buf = utf8.AppendRune(buf, r)
		}
	}
	return append(buf, '"')
}
