// Swagger UI shows the OpenAPI document of this edge. Nothing is asked of any other host.
SwaggerUIBundle({
  dom_id: "#page",
  url: new URL("openapi.json", document.baseURI).href,
  validatorUrl: "none",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  // Access tokens stay in the memory of the page.
  persistAuthorization: false,
});
