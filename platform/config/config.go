// Package config turns the environment into one documented struct per service.
//
// It owns how a variable is read: by value or by file, with its default, all problems reported at once, and secrets that
// never print themselves. It does not know any variable of any service: those are fields of the services' own structs.
//
//	type Config struct {
//		Addr  string        `env:"STATE_GRPC_ADDR" envDefault:"127.0.0.1:9082" desc:"where state listens for gRPC"`
//		Token config.Secret `env:"TOKEN" desc:"sent to the CRM with every request"`
//		Redis RedisConfig   // nested and embedded structs are read too, with envPrefix where it is given
//	}
package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	"github.com/caarlos0/env/v11"
)

// Load reads T from the environment of the process, and warns of what is misspelt there.
func Load[T any]() (T, error) {
	environ := env.ToMap(os.Environ())
	for _, m := range Misspelt[T](environ) {
		slog.Warn(m)
	}
	return LoadFrom[T](environ)
}

// Misspelt says which names in environ are no variable of T, but nearly: their values are read by nobody.
func Misspelt[T any](environ map[string]string) (warnings []string) {
	all := leaves(reflect.TypeFor[T](), "", nil)
	for _, name := range slices.Sorted(maps.Keys(environ)) {
		of := strings.TrimSuffix(name, "_FILE")
		known := func(l leaf) bool { return l.name == name || l.name == of }
		nearly := func(l leaf) bool { return levenshtein.Distance(l.name, of, nil) <= 2 }
		if slices.ContainsFunc(all, known) {
			continue
		}
		if i := slices.IndexFunc(all, nearly); i >= 0 {
			warnings = append(warnings, fmt.Sprintf("%s is no setting and is ignored; is %s meant?", name, all[i].name))
		}
	}
	return warnings
}

// LoadFrom reads T from environ. An unset or empty variable means its default. NAME_FILE names a file that holds the value
// of NAME, without its trailing newline; giving both is a problem.
//
// The error joins all problems, each naming its variable. When T or *T has Validate() error, its problems are joined too;
// a variable that could not be read has its default there, so it is not reported twice. Validate of a nested struct is
// called only where Go promotes it to T.
func LoadFrom[T any](environ map[string]string) (T, error) {
	var (
		cfg      T
		problems []error
	)
	for _, l := range leaves(reflect.TypeFor[T](), "", nil) {
		target := reflect.ValueOf(&cfg).Elem().FieldByIndex(l.index)
		value, err := lookup(environ, l.name)
		if err == nil {
			err = l.set(target, value)
		}
		if err != nil {
			problems = append(problems, err)
			if err := l.set(target, ""); err != nil {
				problems = append(problems, fmt.Errorf("default of %w", err))
			}
		}
	}
	if v, ok := any(&cfg).(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			problems = append(problems, err)
		}
	}
	return cfg, errors.Join(problems...)
}

func lookup(environ map[string]string, name string) (string, error) {
	file := environ[name+"_FILE"]
	if file == "" {
		return environ[name], nil
	}
	if environ[name] != "" {
		return "", fmt.Errorf("%s: %s_FILE is set too; set only one of them", name, name)
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("%s_FILE: %w", name, err)
	}
	value := strings.TrimSuffix(string(content), "\n")
	return strings.TrimSuffix(value, "\r"), nil
}

// leaf is one variable: a field that is not a struct of further variables.
type leaf struct {
	name  string
	field reflect.StructField
	index []int
}

// leaves lists the variables of struct type t in the order of its fields.
func leaves(t reflect.Type, prefix string, index []int) []leaf {
	var all []leaf
	for i := range t.NumField() {
		f := t.Field(i)
		at := append(append([]int(nil), index...), i)
		name, _, _ := strings.Cut(f.Tag.Get("env"), ",")
		switch {
		case name != "" && name != "-" && f.IsExported():
			all = append(all, leaf{name: prefix + name, field: f, index: at})
		case name == "" && f.Type.Kind() == reflect.Struct && (f.IsExported() || f.Anonymous):
			all = append(all, leaves(f.Type, prefix+f.Tag.Get("envPrefix"), at)...)
		}
	}
	return all
}

// set parses value, or the default when it is empty, into target. The library sees one field at a time, because its errors
// name the field and not the variable, and nested structs may have fields of the same name.
func (l leaf) set(target reflect.Value, value string) error {
	name, _, _ := strings.Cut(l.field.Tag.Get("env"), ",")
	alone := reflect.New(reflect.StructOf([]reflect.StructField{{Name: l.field.Name, Type: l.field.Type, Tag: l.field.Tag}}))
	err := env.ParseWithOptions(alone.Interface(), env.Options{Environment: map[string]string{name: value}})
	if err != nil {
		if parse := (env.ParseError{}); errors.As(err, &parse) {
			err = parse.Err
		}
		return fmt.Errorf("%s: %w", l.name, err)
	}
	target.Set(alone.Elem().Field(0))
	return nil
}

// Field documents one variable.
type Field struct {
	Name, Type, Default, Desc string
	Secret                    bool
}

// Fields lists the variables of T in the order of its fields.
func Fields[T any]() []Field {
	var fields []Field
	for _, l := range leaves(reflect.TypeFor[T](), "", nil) {
		fields = append(fields, Field{
			Name:    l.name,
			Type:    typeName(l.field.Type),
			Default: l.field.Tag.Get("envDefault"),
			Desc:    l.field.Tag.Get("desc"),
			Secret:  l.field.Type == reflect.TypeFor[Secret](),
		})
	}
	return fields
}

// typeName is the type as the reader of a configuration reference knows it.
func typeName(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[time.Duration]():
		return "duration"
	case reflect.TypeFor[Secret]():
		return "secret"
	case reflect.TypeFor[Switch]():
		return "switch"
	}
	if t.PkgPath() != "" {
		return t.String()
	}
	switch {
	case t.Kind() == reflect.Slice:
		return "list of " + typeName(t.Elem())
	case reflect.Int <= t.Kind() && t.Kind() <= reflect.Uint64:
		return "integer"
	}
	return t.String()
}
