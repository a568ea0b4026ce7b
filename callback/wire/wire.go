// Package wire reads callbacks from their protobuf messages (callrelay/callback/v1), and writes them there. It owns only that
// step; what the values mean is package callback's.
package wire

import (
	"reflect"
	"slices"
	"sync"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"callrelay/callback"
)

// Params are the parameters of a callback message whose fields are all strings, by their names in a query.
func Params(m proto.Message) callback.Params {
	params, v := make(callback.Params, 0, 16), reflect.ValueOf(m).Elem()
	for i, name := range namesOf(v.Type()) {
		if name == "" {
			continue
		}
		if value := v.Field(i).String(); value != "" {
			params = append(params, callback.Param{Name: name, Value: value})
		}
	}
	return params
}

// Fill sets the fields of such a message that the parameters name; others are ignored. Of repeated ones the last counts.
func Fill(m proto.Message, params callback.Params) {
	v := reflect.ValueOf(m).Elem()
	names := namesOf(v.Type())
	for _, param := range params {
		if i := slices.Index(names, param.Name); i >= 0 && param.Name != "" {
			v.Field(i).SetString(param.Value)
		}
	}
}

// known has the names of each type of message. protoreflect would allocate twice for each field that is set.
var known sync.Map // reflect.Type -> []string

// namesOf are the names that the fields of a message struct have in a query; "" for what is no field of the message.
func namesOf(t reflect.Type) []string {
	if names, ok := known.Load(t); ok {
		return names.([]string)
	}
	names := make([]string, t.NumField())
	for i := range names {
		if field := t.Field(i); !field.IsExported() || field.Type.Kind() != reflect.String {
			continue
		}
		probe := reflect.New(t) // whichever field of the message is set when this one of the struct is
		probe.Elem().Field(i).SetString("x")
		probe.Interface().(proto.Message).ProtoReflect().Range(func(field protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
			names[i] = field.JSONName()
			return false
		})
	}
	known.Store(t, names)
	return names
}
